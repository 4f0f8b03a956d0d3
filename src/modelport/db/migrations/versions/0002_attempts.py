"""A call that took more than one attempt keeps what each of them was."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("usage_events", sa.Column("attempts", sa.JSON(none_as_null=True)))


def downgrade() -> None:
    op.drop_column("usage_events", "attempts")
