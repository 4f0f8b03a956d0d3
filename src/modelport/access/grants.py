"""Nobody hands out more than they have: what a key may give to the keys it creates or changes. Pure."""

from __future__ import annotations

from dataclasses import fields, replace

from msgspec import UNSET

from modelport.access.model import NO_LIMITS, ApiKey, Grant, KeyChange
from modelport.access.rules import check_scopes, parse_networks
from modelport.calls import Caller, Limits
from modelport.errors import BadRequest, PermissionDenied

# Everything of a grant but its mode, which is a part of the key itself.
CHANGEABLE = ("scopes", "models", "limits", "allowed_ips", "expires_us", "model_versions")


def grant_of(actor: Caller, key: ApiKey | None) -> Grant:
    """What the caller has to give: its key's own grant, or, where it came without a key, what the caller carries."""
    if key is not None:
        return key.grant
    return Grant(mode=actor.mode, scopes=actor.scopes, models=actor.models, limits=actor.key_limits)


def inherit(wanted: Grant, giver: Grant) -> Grant:
    """`wanted`, with the giver's restriction wherever none was asked for."""
    return replace(
        wanted,
        models=giver.models if wanted.models is None else wanted.models,
        limits=_inherited(wanted.limits, giver.limits),
        allowed_ips=giver.allowed_ips if wanted.allowed_ips is None else wanted.allowed_ips,
        expires_us=giver.expires_us if wanted.expires_us is None else wanted.expires_us,
    )


def change(grant: Grant, wanted: KeyChange, giver: Grant) -> Grant:
    """The grant with what was asked to be different; a lifted restriction becomes the giver's own."""
    different = {name: value for name in CHANGEABLE if (value := getattr(wanted, name)) is not UNSET}
    if different.get("limits", UNSET) is None:
        different["limits"] = NO_LIMITS
    full = inherit(replace(grant, **different), giver)
    return replace(grant, **{name: getattr(full, name) for name in different})


def check_valid(grant: Grant, *, now_us: int) -> None:
    """Raises: BadRequest when the grant says something that can't be."""
    check_scopes(grant.scopes)
    parse_networks(grant.allowed_ips or ())
    if grant.expires_us is not None and grant.expires_us <= now_us:
        raise BadRequest("expires_at lies in the past; to end a key now, delete it.", param="expires_at")


def check_within(wanted: Grant, giver: Grant) -> None:
    """Raises: PermissionDenied that names the first thing that is wanted and that the giver lacks."""
    if giver.mode == "test" and wanted.mode == "live":
        raise PermissionDenied("A test key can't create or change live keys; use a live key.", param="mode")
    missing = sorted(wanted.scopes - giver.scopes)
    if missing:
        raise PermissionDenied(f"The key you use lacks the scope {missing[0]!r}, so it can't give it.", param="scopes")
    if giver.models is not None and not (wanted.models is not None and wanted.models <= giver.models):
        raise PermissionDenied("The key you use may not call all of these models.", param="models")
    _check_limits(wanted.limits, giver.limits)
    _check_networks(wanted.allowed_ips, giver.allowed_ips)
    if giver.expires_us is not None and (wanted.expires_us is None or wanted.expires_us > giver.expires_us):
        raise PermissionDenied("A key can't outlive the key that creates or changes it.", param="expires_at")


def _inherited(wanted: Limits, giver: Limits) -> Limits:
    values = {field.name: getattr(wanted, field.name) for field in fields(Limits)}
    return Limits(**{name: getattr(giver, name) if value is None else value for name, value in values.items()})


def _check_limits(wanted: Limits, giver: Limits) -> None:
    for field in fields(Limits):
        ours, theirs = getattr(giver, field.name), getattr(wanted, field.name)
        if ours is not None and (theirs is None or theirs > ours):
            raise PermissionDenied(
                f"The key you use has {field.name} = {ours:,}, so it can't give more.", param=f"limits.{field.name}"
            )


def _check_networks(wanted: tuple[str, ...] | None, giver: tuple[str, ...] | None) -> None:
    if giver is None:
        return
    ours = parse_networks(giver)
    for network in parse_networks(wanted or ("0.0.0.0/0",)):
        if not any(network.version == own.version and network.subnet_of(own) for own in ours):  # type: ignore[arg-type]
            raise PermissionDenied(f"The key you use may not be used from {network}.", param="allowed_ips")
