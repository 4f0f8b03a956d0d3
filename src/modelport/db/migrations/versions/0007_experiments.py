"""Experiments: who gets which variant, which one a call got, and what was thought of its answer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0005"
branch_labels = None
depends_on = None

_INDEX = "ix_usage_events_experiment_started_us"


def upgrade() -> None:
    op.add_column("usage_events", sa.Column("experiment", sa.String(120)))
    some = sa.text("experiment IS NOT NULL")
    op.create_index(
        _INDEX, "usage_events", ["experiment", "started_us"], sqlite_where=some, postgresql_where=some
    )  # fmt: skip
    op.create_table(
        "experiments",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("audience", sa.String(16), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("variants", sa.JSON, nullable=False),
        sa.Column("sticky", sa.String(80), nullable=False),
        sa.Column("metric", sa.String(16), nullable=False),
        sa.Column("alpha", sa.Float, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("slot", sa.String(300)),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("since_us", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name="fk_experiments_organization_id"),
        sa.PrimaryKeyConstraint("id", name="pk_experiments"),
        sa.UniqueConstraint("slot", name="uq_experiments_slot"),
    )
    op.create_index("ix_experiments_organization_id_id", "experiments", ["organization_id", "id"])
    op.create_table(
        "feedback",
        sa.Column("call_id", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("score", sa.Float, nullable=False),
        sa.Column("comment", sa.String(2000), nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("call_id", "key_id", name="pk_feedback"),
    )


def downgrade() -> None:
    op.drop_table("feedback")
    op.drop_table("experiments")
    op.drop_index(_INDEX, "usage_events")
    op.drop_column("usage_events", "experiment")
