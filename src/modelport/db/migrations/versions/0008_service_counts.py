"""Service levels: calls by the minute and the hour they ended in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "service_counts",
        sa.Column("width_s", sa.Integer, nullable=False),
        sa.Column("slot_us", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("endpoint", sa.String(200), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("stretch", sa.Integer, nullable=False),
        sa.Column("calls", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint(
            "width_s",
            "slot_us",
            "kind",
            "endpoint",
            "model",
            "version",
            "outcome",
            "stretch",
            name="pk_service_counts",
        ),
    )


def downgrade() -> None:
    op.drop_table("service_counts")
