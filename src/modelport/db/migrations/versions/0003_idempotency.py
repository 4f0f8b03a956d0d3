"""The table `idempotency_keys`: which requests ran under an Idempotency-Key, and what they answered."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("key_hash", sa.String(64), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("call_id", sa.String(64), nullable=False),
        sa.Column("lease_us", sa.BigInteger),
        sa.Column("answer", sa.LargeBinary),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("expires_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("organization_id", "key_hash", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_expires_us", "idempotency_keys", ["expires_us"])
    op.create_index(
        "ix_idempotency_keys_call_id",
        "idempotency_keys",
        ["call_id"],
        sqlite_where=sa.text("lease_us IS NOT NULL"),
        postgresql_where=sa.text("lease_us IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_table("idempotency_keys")
