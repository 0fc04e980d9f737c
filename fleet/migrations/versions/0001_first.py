"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('blobs',
    sa.Column('sha256', sa.String(length=64), nullable=False),
    sa.Column('size_bytes', sa.BigInteger(), nullable=False),
    sa.Column('path', sa.String(length=200), nullable=False),
    sa.PrimaryKeyConstraint('sha256')
    )
    op.create_table('desired',
    sa.Column('device', sa.String(length=63), nullable=False),
    sa.Column('model', sa.String(length=63), nullable=False),
    sa.Column('order', sa.BigInteger(), nullable=False),
    sa.Column('digest', sa.String(length=64), nullable=False),
    sa.Column('rollout', sa.String(length=64), nullable=True),
    sa.Column('doc', sa.Text(), nullable=False),
    sa.PrimaryKeyConstraint('device', 'model')
    )
    op.create_table('devices',
    sa.Column('device', sa.String(length=63), nullable=False),
    sa.Column('online', sa.Boolean(), nullable=False),
    sa.Column('seen_at', sa.Float(), nullable=False),
    sa.Column('install_id', sa.String(length=32), nullable=True),
    sa.Column('view', sa.Text(), nullable=False),
    sa.PrimaryKeyConstraint('device')
    )
    op.create_table('groups',
    sa.Column('device', sa.String(length=63), nullable=False),
    sa.Column('name', sa.String(length=63), nullable=False),
    sa.PrimaryKeyConstraint('device', 'name')
    )
    op.create_table('labels',
    sa.Column('device', sa.String(length=63), nullable=False),
    sa.Column('key', sa.String(length=63), nullable=False),
    sa.Column('value', sa.String(length=200), nullable=False),
    sa.PrimaryKeyConstraint('device', 'key')
    )
    op.create_table('outbox',
    sa.Column('id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
    sa.Column('topic', sa.String(length=400), nullable=False),
    sa.Column('rank', sa.Integer(), nullable=False),
    sa.Column('retain', sa.Boolean(), nullable=False),
    sa.Column('qos', sa.Integer(), nullable=False),
    sa.Column('payload', sa.LargeBinary(), nullable=True),
    sa.Column('blob', sa.String(length=64), nullable=True),
    sa.Column('generation', sa.BigInteger(), nullable=False),
    sa.Column('published_at', sa.Float(), nullable=True),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_index('outbox_by_topic', 'outbox', ['topic'], unique=False)
    op.create_index('outbox_pending', 'outbox', ['published_at', 'rank', 'id'], unique=False)
    op.create_table('registry',
    sa.Column('id', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('registry_id', sa.String(length=32), nullable=False),
    sa.Column('generation', sa.BigInteger(), nullable=False),
    sa.Column('orders', sa.BigInteger(), nullable=False),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_table('releases',
    sa.Column('digest', sa.String(length=64), nullable=False),
    sa.Column('model', sa.String(length=63), nullable=False),
    sa.Column('name', sa.String(length=63), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('created_at', sa.Float(), nullable=False),
    sa.Column('manifest', sa.LargeBinary(), nullable=False),
    sa.PrimaryKeyConstraint('digest')
    )
    op.create_index('releases_by_name', 'releases', ['model', 'name'], unique=True)
    op.create_table('report_marks',
    sa.Column('device', sa.String(length=63), nullable=False),
    sa.Column('install_id', sa.String(length=32), nullable=False),
    sa.Column('contiguous', sa.BigInteger(), nullable=False),
    sa.Column('gap_since', sa.Float(), nullable=True),
    sa.PrimaryKeyConstraint('device', 'install_id')
    )
    op.create_table('reports',
    sa.Column('device', sa.String(length=63), nullable=False),
    sa.Column('install_id', sa.String(length=32), nullable=False),
    sa.Column('number', sa.BigInteger(), nullable=False),
    sa.Column('order', sa.BigInteger(), nullable=False),
    sa.Column('received_at', sa.Float(), nullable=False),
    sa.Column('doc', sa.Text(), nullable=False),
    sa.PrimaryKeyConstraint('device', 'install_id', 'number')
    )
    op.create_index('reports_by_order', 'reports', ['order'], unique=False)
    op.create_table('rollbacks',
    sa.Column('id', sa.String(length=64), nullable=False),
    sa.Column('device', sa.String(length=63), nullable=False),
    sa.Column('model', sa.String(length=63), nullable=False),
    sa.Column('from_digest', sa.String(length=64), nullable=False),
    sa.Column('order', sa.BigInteger(), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('asked_at', sa.Float(), nullable=False),
    sa.Column('detail', sa.String(length=2000), nullable=False),
    sa.PrimaryKeyConstraint('id', 'device')
    )
    op.create_index('rollbacks_by_state', 'rollbacks', ['state'], unique=False)
    op.create_table('rollouts',
    sa.Column('id', sa.String(length=64), nullable=False),
    sa.Column('model', sa.String(length=63), nullable=False),
    sa.Column('release', sa.String(length=64), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('created_at', sa.Float(), nullable=False),
    sa.Column('doc', sa.Text(), nullable=False),
    sa.Column('rollback_order', sa.BigInteger(), nullable=False),
    sa.Column('rollback_payload', sa.LargeBinary(), nullable=False),
    sa.Column('cleared', sa.Boolean(), nullable=False),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_index('rollouts_by_state', 'rollouts', ['state'], unique=False)


def downgrade() -> None:
    op.drop_index('rollouts_by_state', table_name='rollouts')
    op.drop_table('rollouts')
    op.drop_index('rollbacks_by_state', table_name='rollbacks')
    op.drop_table('rollbacks')
    op.drop_index('reports_by_order', table_name='reports')
    op.drop_table('reports')
    op.drop_table('report_marks')
    op.drop_index('releases_by_name', table_name='releases')
    op.drop_table('releases')
    op.drop_table('registry')
    op.drop_index('outbox_pending', table_name='outbox')
    op.drop_index('outbox_by_topic', table_name='outbox')
    op.drop_table('outbox')
    op.drop_table('labels')
    op.drop_table('groups')
    op.drop_table('devices')
    op.drop_table('desired')
    op.drop_table('blobs')
