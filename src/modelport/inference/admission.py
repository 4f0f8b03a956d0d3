"""Who may come in: key, scope and limits, decided in one place for every door.

A revoked key is refused from the instant its revocation is committed: the take that every admission makes reads the
fence `keys` in the same atomic operation, and a fence that moved sends the key ring back to the database.
"""

from __future__ import annotations

from modelport.access.keyring import KeyRing
from modelport.calls import Call, Caller
from modelport.errors import ModelportError, PermissionDenied
from modelport.limits.service import Limiter, Reservation


def check_scope(caller: Caller, scope: str) -> None:
    """Raises: PermissionDenied that names the scope the key lacks."""
    if scope not in caller.scopes:
        raise PermissionDenied(f"This API key lacks the scope {scope!r}; create one that has it, or ask its owner.")


class Admission:
    """Authenticates and reserves; what was reserved is settled by whoever was let in."""

    def __init__(self, keyring: KeyRing, limiter: Limiter) -> None:
        self._keyring = keyring
        self._limiter = limiter

    async def authenticate(self, secret: str, *, address: str, scope: str) -> Caller:
        """Who calls, if the key is good and has `scope`. Raises: Unauthenticated, PermissionDenied."""
        caller = await self._keyring.authenticate(secret, address=address)
        check_scope(caller, scope)
        return caller

    async def reserve(self, call: Call, secret: str, *, tokens: int) -> Reservation:
        """Take the call's place in every limit, at most `tokens` of them.

        Raises: LimitExceeded; Unauthenticated when the key was revoked meanwhile, with nothing taken.
        """
        reservation = await self._limiter.reserve(call.id, call.caller, tokens=tokens)
        try:
            call.caller = await self._keyring.confirm(secret, call.caller, reservation.fence)
        except BaseException:
            await self._limiter.settle(reservation, tokens=0)
            raise
        return reservation

    async def settle(self, reservation: Reservation, *, tokens: int) -> None:
        """Correct the reservation to the tokens that were used. Idempotent; never raises for a lost state."""
        try:
            await self._limiter.settle(reservation, tokens=tokens)
        except ModelportError:
            # The state is away: rate takes age out and holds expire by themselves, towards fewer calls, not more.
            return

    async def manage(self, request_id: str, secret: str, *, address: str, scope: str) -> tuple[Caller, Reservation]:
        """Admit one call of the management API. Raises: Unauthenticated, PermissionDenied, LimitExceeded."""
        caller = await self.authenticate(secret, address=address, scope=scope)
        reservation = await self._limiter.reserve_management(request_id, caller)
        caller = await self._keyring.confirm(secret, caller, reservation.fence)
        check_scope(caller, scope)
        return caller, reservation
