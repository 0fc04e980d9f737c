"""Alembic's entry: runs the migrations on the connection that `fleet.adapters.sql_store` passes in.

For: being called by Alembic. Not for: being run from a shell, or finding a database by itself.
"""

from __future__ import annotations

from alembic import context

from fleet.adapters.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
