"""Every table, in one place: what the migrations build and what the stores read.

Times are integers of microseconds since the epoch, UTC; money is integers of nano-dollars; both mean the same on
SQLite and PostgreSQL. `migrations/` is checked against this file by a test.
"""

from __future__ import annotations

import sqlalchemy as sa

# Names of constraints are fixed so that a migration can drop them by name on both databases.
metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_Id = sa.String(64)
_TimeUs = sa.BigInteger
_Nanos = sa.BigInteger

plans = sa.Table(
    "plans",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("requests_per_minute", sa.Integer),
    sa.Column("tokens_per_minute", sa.Integer),
    sa.Column("concurrent_calls", sa.Integer),
    # Hundredths of a percent off every price: 1_000 is 10 %.
    sa.Column("discount_basis_points", sa.Integer, nullable=False, server_default="0"),
    sa.Column("created_us", _TimeUs, nullable=False),
)

organizations = sa.Table(
    "organizations",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("plan_id", _Id, sa.ForeignKey("plans.id"), nullable=False),
    # A limit set here replaces the plan's for this organization alone.
    sa.Column("requests_per_minute", sa.Integer),
    sa.Column("tokens_per_minute", sa.Integer),
    sa.Column("concurrent_calls", sa.Integer),
    sa.Column("created_us", _TimeUs, nullable=False),
)

projects = sa.Table(
    "projects",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("organization_id", _Id, sa.ForeignKey("organizations.id"), nullable=False, index=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("created_us", _TimeUs, nullable=False),
)

users = sa.Table(
    "users",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("email", sa.String(320), nullable=False, unique=True),
    sa.Column("password_hash", sa.String(200), nullable=False),
    sa.Column("operator", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("created_us", _TimeUs, nullable=False),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("organization_id", _Id, sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("project_id", _Id, sa.ForeignKey("projects.id"), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("mode", sa.String(8), nullable=False),
    sa.Column("prefix", sa.String(16), nullable=False),
    sa.Column("last4", sa.String(4), nullable=False),
    # SHA-256 of the whole key, hexadecimal. The key itself is never stored.
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("models", sa.JSON(none_as_null=True)),
    # Model id → version or alias, for calls that name none.
    sa.Column("model_versions", sa.JSON(none_as_null=True)),
    sa.Column("requests_per_minute", sa.Integer),
    sa.Column("tokens_per_minute", sa.Integer),
    sa.Column("concurrent_calls", sa.Integer),
    sa.Column("allowed_ips", sa.JSON(none_as_null=True)),
    sa.Column("operator", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("expires_us", _TimeUs),
    sa.Column("created_us", _TimeUs, nullable=False),
    sa.Column("last_used_us", _TimeUs),
    sa.Column("revoked_us", _TimeUs),
    # Pages of one organization's keys are read in the order of their ids.
    sa.Index("ix_api_keys_organization_id_id", "organization_id", "id"),
)

prices = sa.Table(
    "prices",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("model", sa.String(200), nullable=False),
    # A price holds from this instant until the next row of the same model begins.
    sa.Column("valid_from_us", _TimeUs, nullable=False),
    # Nano-dollars per million units.
    sa.Column("input_nanos_per_mtok", _Nanos, nullable=False, server_default="0"),
    sa.Column("cached_nanos_per_mtok", _Nanos),
    sa.Column("output_nanos_per_mtok", _Nanos, nullable=False, server_default="0"),
    # Nano-dollars each.
    sa.Column("nanos_per_request", _Nanos, nullable=False, server_default="0"),
    sa.Column("nanos_per_image", _Nanos, nullable=False, server_default="0"),
    sa.Column("nanos_per_second", _Nanos, nullable=False, server_default="0"),
    sa.Column("source", sa.String(40), nullable=False),
    sa.Column("created_us", _TimeUs, nullable=False),
    sa.UniqueConstraint("model", "valid_from_us"),
)

usage_events = sa.Table(
    "usage_events",
    metadata,
    # The answer's x-request-id. As the primary key it is what makes a call counted once.
    sa.Column("call_id", _Id, primary_key=True),
    sa.Column("organization_id", _Id, nullable=False),
    sa.Column("project_id", _Id, nullable=False),
    sa.Column("key_id", _Id, nullable=False),
    sa.Column("mode", sa.String(8), nullable=False),
    sa.Column("endpoint", sa.String(80), nullable=False),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("version", sa.String(80), nullable=False, server_default=""),
    sa.Column("backend", sa.String(40), nullable=False, server_default=""),
    sa.Column("stream", sa.Boolean, nullable=False),
    # The HTTP status of the answer; 499 when the client hung up, 500 when the process died in the middle.
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("error_code", sa.String(80)),
    sa.Column("input_tokens", sa.BigInteger, nullable=False),
    sa.Column("output_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False),
    sa.Column("images", sa.Integer, nullable=False, server_default="0"),
    sa.Column("exact", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("cost_nanos", _Nanos, nullable=False),
    sa.Column("price_id", _Id),
    sa.Column("discount_basis_points", sa.Integer, nullable=False, server_default="0"),
    sa.Column("started_us", _TimeUs, nullable=False),
    sa.Column("latency_us", sa.BigInteger, nullable=False),
    sa.Column("first_token_us", sa.BigInteger),
    sa.Column("metadata", sa.JSON, nullable=False),
    # One object for each attempt, where there was more than one or another model answered.
    sa.Column("attempts", sa.JSON(none_as_null=True)),
    # The variant that answered, `exp_…=name`, of a call that was in an experiment.
    sa.Column("experiment", sa.String(120)),
    sa.Index("ix_usage_events_organization_id_started_us", "organization_id", "started_us"),
    sa.Index(
        "ix_usage_events_experiment_started_us",
        "experiment",
        "started_us",
        sqlite_where=sa.text("experiment IS NOT NULL"),
        postgresql_where=sa.text("experiment IS NOT NULL"),
    ),
)

budgets = sa.Table(
    "budgets",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("organization_id", _Id, sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("scope", sa.String(16), nullable=False),
    # An id, or of a tag its name and value.
    sa.Column("target", sa.String(600), nullable=False),
    sa.Column("period", sa.String(8), nullable=False),
    sa.Column("soft_nanos", _Nanos),
    sa.Column("hard_nanos", _Nanos),
    # The beginning of the last period in which somebody was told that a limit is near, and that it is reached.
    sa.Column("approaching_us", _TimeUs),
    sa.Column("reached_us", _TimeUs),
    sa.Column("created_us", _TimeUs, nullable=False),
    sa.UniqueConstraint("organization_id", "scope", "target", "period"),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("organization_id", _Id, primary_key=True),
    # SHA-256 of the key's mode and the Idempotency-Key, hexadecimal.
    sa.Column("key_hash", sa.String(64), primary_key=True),
    # SHA-256 of method, path, organization and body: what a repeat must have in common.
    sa.Column("fingerprint", sa.String(64), nullable=False),
    # The call that runs, or ran; also who holds the claim.
    sa.Column("call_id", _Id, nullable=False),
    # While the call runs: when its process must have renewed the claim. Null once it has ended.
    sa.Column("lease_us", _TimeUs),
    # The answer, once it has ended; null then where it was too large.
    sa.Column("answer", sa.LargeBinary),
    sa.Column("created_us", _TimeUs, nullable=False),
    sa.Column("expires_us", _TimeUs, nullable=False, index=True),
    # Claims are renewed by their calls. Only rows in flight are in it, so it stays small.
    sa.Index(
        "ix_idempotency_keys_call_id",
        "call_id",
        sqlite_where=sa.text("lease_us IS NOT NULL"),
        postgresql_where=sa.text("lease_us IS NOT NULL"),
    ),
)

# Calls by the minute and the hour they ended in, for service levels; not for bills.
service_counts = sa.Table(
    "service_counts",
    metadata,
    # Seconds; 0: the row that tells when the platform first came up.
    sa.Column("width_s", sa.Integer, primary_key=True),
    sa.Column("slot_us", _TimeUs, primary_key=True),
    sa.Column("kind", sa.String(8), primary_key=True),
    sa.Column("endpoint", sa.String(200), primary_key=True),
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("version", sa.String(64), primary_key=True),
    sa.Column("outcome", sa.String(16), primary_key=True),
    sa.Column("stretch", sa.Integer, primary_key=True),
    sa.Column("calls", sa.BigInteger, nullable=False),
)

# Versions that were added while serving, beside those of the configuration. Immutable: a removed one keeps its row, so
# that its name never means another file.
model_versions = sa.Table(
    "model_versions",
    metadata,
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("version", _Id, primary_key=True),
    sa.Column("kind", sa.String(40), nullable=False),
    sa.Column("backend", sa.String(40), nullable=False),
    sa.Column("source", sa.String(2000), nullable=False),
    # Both null until a file from elsewhere has come.
    sa.Column("sha256", sa.String(64)),
    sa.Column("size_bytes", sa.BigInteger),
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("description", sa.String(2000), nullable=False),
    # `active` or `removed`.
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("created_us", _TimeUs, nullable=False),
    sa.Column("created_by", _Id, nullable=False),
)

# What aliases mean and meant: of each alias the highest number holds. An empty version: as configured again.
model_aliases = sa.Table(
    "model_aliases",
    metadata,
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("alias", _Id, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("version", _Id, nullable=False),
    sa.Column("created_us", _TimeUs, nullable=False),
    sa.Column("created_by", _Id, nullable=False),
)

# Ends of versions that were announced while serving; they go before the configuration's.
model_retirements = sa.Table(
    "model_retirements",
    metadata,
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("version", _Id, primary_key=True),
    sa.Column("deprecated_us", _TimeUs, nullable=False),
    sa.Column("sunset_us", _TimeUs),
    sa.Column("successor", sa.String(400), nullable=False),
    sa.Column("link", sa.String(2000), nullable=False),
    sa.Column("created_us", _TimeUs, nullable=False),
    sa.Column("created_by", _Id, nullable=False),
)

# One row. Every change of the three tables above begins by raising its revision, and so waits for the one before.
registry = sa.Table(
    "registry",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
)

experiments = sa.Table(
    "experiments",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("organization_id", _Id, sa.ForeignKey("organizations.id"), nullable=False),
    # Whose calls it concerns: `organization` or `everyone`.
    sa.Column("audience", sa.String(16), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("model", sa.String(200), nullable=False),
    # One object for each variant; the first is what the others are compared with.
    sa.Column("variants", sa.JSON, nullable=False),
    sa.Column("sticky", sa.String(80), nullable=False),
    sa.Column("metric", sa.String(16), nullable=False),
    sa.Column("alpha", sa.Float, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    # Whose calls to which model it takes until it is stopped; null then. Its uniqueness keeps experiments apart.
    sa.Column("slot", sa.String(300), unique=True),
    sa.Column("created_us", _TimeUs, nullable=False),
    sa.Column("since_us", _TimeUs, nullable=False),
    sa.Index("ix_experiments_organization_id_id", "organization_id", "id"),
)

# What somebody thought of a call's answer, from 0 to 1.
feedback = sa.Table(
    "feedback",
    metadata,
    sa.Column("call_id", _Id, primary_key=True),
    sa.Column("key_id", _Id, primary_key=True),
    sa.Column("organization_id", _Id, nullable=False),
    sa.Column("score", sa.Float, nullable=False),
    sa.Column("comment", sa.String(2000), nullable=False),
    sa.Column("created_us", _TimeUs, nullable=False),
)
