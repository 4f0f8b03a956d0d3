"""Model versions, aliases and retirements that were made while serving, and versions that keys are pinned to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "model_versions",
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("backend", sa.String(40), nullable=False),
        sa.Column("source", sa.String(2000), nullable=False),
        sa.Column("sha256", sa.String(64)),
        sa.Column("size_bytes", sa.BigInteger),
        sa.Column("options", sa.JSON, nullable=False),
        sa.Column("description", sa.String(2000), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("model", "version", name="pk_model_versions"),
    )
    op.create_table(
        "model_aliases",
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("alias", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("model", "alias", "number", name="pk_model_aliases"),
    )
    op.create_table(
        "model_retirements",
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("deprecated_us", sa.BigInteger, nullable=False),
        sa.Column("sunset_us", sa.BigInteger),
        sa.Column("successor", sa.String(400), nullable=False),
        sa.Column("link", sa.String(2000), nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("model", "version", name="pk_model_retirements"),
    )
    op.create_table(
        "registry",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_registry"),
    )
    op.execute("INSERT INTO registry (id, revision) VALUES (1, 0)")
    op.add_column("api_keys", sa.Column("model_versions", sa.JSON(none_as_null=True)))


def downgrade() -> None:
    with op.batch_alter_table("api_keys") as table:
        table.drop_column("model_versions")
    for name in ("registry", "model_retirements", "model_aliases", "model_versions"):
        op.drop_table(name)
