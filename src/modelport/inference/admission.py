"""Who may come in: key, scope, limits and budgets, decided in one place for every door.

A revoked key is refused from the instant its revocation is committed: the take that every admission makes reads the
fence `keys` in the same atomic operation, and a fence that moved sends the key ring back to the database. Budgets
travel with the caller, so the same fence makes a new one hold at once.
"""

from __future__ import annotations

from collections.abc import Callable

from modelport.access.keyring import KeyRing
from modelport.budgets.quote import Quote
from modelport.calls import Call, Caller
from modelport.errors import BudgetExceeded, ModelportError, PermissionDenied
from modelport.inference.cashier import Cashier, PaidReservation
from modelport.limits.service import Limiter, Reservation


def check_scope(caller: Caller, scope: str) -> None:
    """Raises: PermissionDenied that names the scope the key lacks."""
    if scope not in caller.scopes:
        raise PermissionDenied(f"This API key lacks the scope {scope!r}; create one that has it, or ask its owner.")


class Admission:
    """Authenticates and reserves; what was reserved is settled by whoever was let in."""

    def __init__(self, keyring: KeyRing, limiter: Limiter, cashier: Cashier) -> None:
        self._keyring = keyring
        self._limiter = limiter
        self._cashier = cashier

    async def authenticate(self, secret: str, *, address: str, scope: str) -> Caller:
        """Who calls, if the key is good and has `scope`. Raises: Unauthenticated, PermissionDenied."""
        caller = await self._keyring.authenticate(secret, address=address)
        check_scope(caller, scope)
        return caller

    async def reserve(self, call: Call, secret: str, *, tokens: int, quote: Callable[[], Quote]) -> Reservation:
        """Take the call's place in every limit, at most `tokens` of them, and in the purses of its budgets.

        `quote` is asked for the worst case only where there are budgets; the reservation is a `PaidReservation` then.
        Raises: LimitExceeded, BudgetExceeded; Unauthenticated when the key was revoked meanwhile, with nothing taken.
        """
        while True:
            asked = call.caller
            if not asked.budgets:
                reservation = await self._limiter.reserve(call.id, asked, tokens=tokens)
            else:
                try:
                    reservation = await self._cashier.reserve(call, tokens=tokens, quote=quote())
                except BudgetExceeded as error:
                    if not await self._may_ask_again(call, secret, error.fence):
                        raise
                    continue
            try:
                call.caller = caller = await self._keyring.confirm(secret, asked, reservation.fence)
            except BaseException:
                await self.settle(reservation, tokens=0, cost_nanos=0)
                raise
            if caller is asked or caller.budgets == asked.budgets:
                return reservation
            # A budget was made or changed while this call was on its way: it is held to what is true now.
            await self._limiter.release(reservation)

    async def _may_ask_again(self, call: Call, secret: str, fence: int) -> bool:
        """Whether the budget that refused the call has been changed by the time it did, for instance raised."""
        asked = call.caller
        call.caller = await self._keyring.confirm(secret, asked, fence)
        return call.caller.budgets != asked.budgets

    async def settle(self, reservation: Reservation, *, tokens: int, cost_nanos: int) -> None:
        """Correct the reservation to what was used. Idempotent; never raises for a lost state."""
        try:
            if type(reservation) is PaidReservation:
                await self._cashier.settle(reservation, tokens=tokens, cost_nanos=cost_nanos)
            else:
                await self._limiter.settle(reservation, tokens=tokens)
        except ModelportError:
            # The state is away: rate takes age out and holds expire by themselves, towards fewer calls, not more.
            # What was spent is held until the durable record has it.
            return

    async def count_repeat(self, request_id: str, caller: Caller, secret: str) -> None:
        """Let in a call that is answered from what is kept: it counts as a request, and uses no tokens.

        Raises: LimitExceeded; Unauthenticated when the key was revoked meanwhile.
        """
        reservation = await self._limiter.reserve(request_id, caller, tokens=0)
        try:
            await self._keyring.confirm(secret, caller, reservation.fence)
        finally:
            await self.settle(reservation, tokens=0, cost_nanos=0)

    async def count_management_repeat(self, request_id: str, caller: Caller, secret: str) -> None:
        """The same for a call of the management API. Raises: Unauthenticated, LimitExceeded."""
        reservation = await self._limiter.reserve_management(request_id, caller)
        await self._keyring.confirm(secret, caller, reservation.fence)

    async def manage(self, request_id: str, secret: str, *, address: str, scope: str) -> tuple[Caller, Reservation]:
        """Admit one call of the management API. Raises: Unauthenticated, PermissionDenied, LimitExceeded."""
        caller = await self.authenticate(secret, address=address, scope=scope)
        reservation = await self._limiter.reserve_management(request_id, caller)
        caller = await self._keyring.confirm(secret, caller, reservation.fence)
        check_scope(caller, scope)
        return caller, reservation
