"""Budgets: how much the calls of an organization, project, key or tag may cost in a period."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "budgets",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("target", sa.String(600), nullable=False),
        sa.Column("period", sa.String(8), nullable=False),
        sa.Column("soft_nanos", sa.BigInteger),
        sa.Column("hard_nanos", sa.BigInteger),
        sa.Column("approaching_us", sa.BigInteger),
        sa.Column("reached_us", sa.BigInteger),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name="fk_budgets_organization_id"),
        sa.PrimaryKeyConstraint("id", name="pk_budgets"),
        sa.UniqueConstraint(
            "organization_id", "scope", "target", "period", name="uq_budgets_organization_id_scope_target_period"
        ),
    )


def downgrade() -> None:
    op.drop_table("budgets")
