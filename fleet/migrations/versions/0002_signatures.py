"""What was signed under which root, and signatures that came with a release."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Two columns; what is there was signed under no root, and by nobody else."""
    op.add_column("registry", sa.Column("signed_root", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("releases", sa.Column("envelope", sa.LargeBinary(), nullable=True))
