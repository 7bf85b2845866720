"""Whatever is withheld, flooded, lied about or killed, and whatever is mined in the end: a socket that had at most what
is due mined is never accused, and one that had more mined always is. The real worker, its deciding part and the look at
the chain, over a record that survives every kill; without threads, and with a clock of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cable.fake_funds import RULES, FakeFunds, KeptAggregates, address_of, script_of
from tests.cable.fakes import CABLE_NODE, SOCKET_NODE, FakeLightning
from tests.cable.test_buyer import SESSION, STATEMENT
from tests.cable.test_onchain_caps import ONCHAIN, TARIFF, TERMS_HERE, TOLERANCE, Inline
from wattline.cable.link.stream import SocketStream
from wattline.cable.link.transport import read_receipt
from wattline.cable.onchain_side import OnchainSide
from wattline.cable.opening import Equipment
from wattline.cable.pay.settlement import Aftermath
from wattline.cable.policy.budget import Caps, PaymentAccount
from wattline.cable.policy.buyer import Buyer
from wattline.cable.policy.events import (
    Arrived,
    DoubtsChecked,
    Failed,
    FinalDue,
    InDoubt,
    OnchainEvent,
    OnchainInvitation,
    OnchainMessage,
    PaymentEvent,
    Receipt,
    RefusedVersion,
    SignedReceipt,
    SocketState,
    VersionAccepted,
)
from wattline.cable.policy.offer import BuyerLimits
from wattline.cable.policy.reconciliation import EnergyTrack
from wattline.cable.policy.rhythm import Pace
from wattline.cable.restoring import found_over, saved_evidence
from wattline.cable.settings import CableSettings
from wattline.core.aggregate import final_value_sat
from wattline.core.bitcoin.chain import TxOutput
from wattline.core.bitcoin.psbt import unsigned_tx
from wattline.core.clock import Clock, Moment, WallWatch
from wattline.core.ledger.cable import CableAggregate, CableAggregateStatus, CableSession
from wattline.core.ledger.ledger import Ledger
from wattline.core.lightning.onchain import Base, WalletTx
from wattline.core.tariff import cost_msat
from wattline.device.meters.reading import MIN_VOLTAGE_MV, Reading
from wattline.v1 import charging_pb2 as pb

ACCUSED = {CableAggregateStatus.CHEATED, CableAggregateStatus.UNANSWERED}
CHIP_BASE_UWH = 1_000


class Kill(BaseException):
    """The process of the cable dies here."""


class Memory(KeptAggregates):
    """The cable may die just before or after a write."""

    def __init__(self, life: Life) -> None:
        super().__init__()
        self._life = life

    @property
    def row(self) -> CableAggregate | None:
        return self.rows.get(SESSION)

    def save(self, row: CableAggregate) -> None:
        self._life.may_die()
        super().save(row)
        self._life.may_die()


class DyingFunds(FakeFunds):
    """A wallet whose owner may die while it signs."""

    def __init__(self, life: Life) -> None:
        super().__init__()
        self._life = life

    def sign(self, base: Base, outputs: Sequence[TxOutput]) -> bytes:
        self._life.may_die()
        psbt = super().sign(base, outputs)
        self._life.may_die()
        return psbt


@dataclass
class Held:
    """What the socket has."""

    number: int
    value_sat: int
    is_final: bool


class Life:
    """A cable and its socket, joined by hand, over as many runs as it takes."""

    def __init__(self) -> None:
        self.memory, self.funds = Memory(self), DyingFunds(self)
        self.session = CableSession(
            "00" * 32, "here:1", SOCKET_NODE, "A1", TARIFF, TERMS_HERE.rated_power_mw, 0, SESSION, opened_at=0,
            base_uwh=CHIP_BASE_UWH,
        )  # fmt: skip
        self.now_ms = 1_000
        self.energy_uwh = 0
        self.held: list[Held] = []
        """All that was ever handed over."""
        self.credited: list[Held] = []
        self.answers = "accept"
        self.takes_final = False
        self.is_over = False
        """The socket has ended the session."""
        self.lives_for: int | None = None
        self.receipt: Receipt | None = None
        """As far as the cable has it."""
        self.side: OnchainSide | None = None
        self.inbox: list[OnchainMessage | PaymentEvent | OnchainEvent] = []
        self.begin()

    def may_die(self) -> None:
        if self.lives_for is not None:
            self.lives_for -= 1
            if self.lives_for < 0:
                self.lives_for = None
                raise Kill

    # The stream.

    def onchain_request(self, signature: str) -> bool:
        del signature
        number, value_sat = (self.credited[-1].number, self.credited[-1].value_sat) if self.credited else (0, 0)
        self.inbox.append(OnchainInvitation(address_of("socket"), script_of("socket"), RULES, number, value_sat))
        return True

    def aggregate_version(self, number: int, psbt: bytes, is_final: bool) -> bool:
        self.may_die()
        value_sat = unsigned_tx(psbt).outputs[0].value_sat
        version = Held(number, value_sat, is_final)
        assert self.memory.row is not None
        assert self.memory.row.signed_sat >= value_sat
        if version not in self.held:
            self.held.append(version)
        if is_final:
            # Whatever was asked for, and in whichever run: by the own meter it can be due, and it is less than before.
            most_uwh = self.energy_uwh + TOLERANCE.allowed_uwh(self.energy_uwh)
            assert value_sat <= final_value_sat(charge(most_uwh), 0, RULES.floor_sat)
            assert value_sat < self.memory.row.signed_sat
        if is_final:
            if self.takes_final:
                self.inbox.append(VersionAccepted(number, value_sat, True))
        elif version in self.credited:
            if self.answers != "withhold":
                self.inbox.append(VersionAccepted(number, value_sat, False))
        elif self.is_over or number != len(self.credited) + 1:
            self.inbox.append(RefusedVersion(number, "session_closed" if self.is_over else "bad_version", "no"))
        elif self.answers == "refuse":
            self.inbox.append(RefusedVersion(number, "policy", "no"))
        elif self.answers == "claim and refuse":
            self.credited.append(version)
            self.onchain_request("")  # it says that it holds this one
            self.inbox.append(RefusedVersion(number, "policy", "no"))
        else:
            self.credited.append(version)
            if self.answers == "accept":
                self.inbox.append(VersionAccepted(number, value_sat, False))
        self.may_die()
        return True

    # The cable.

    def begin(self) -> None:
        """A run takes the session up. One that dies at it is begun again."""
        self.inbox.clear()
        equipment = Equipment(
            node=FakeLightning(lambda *_: None),
            payer=None,  # type: ignore[arg-type]
            ledger=cast(Ledger, SimpleNamespace(cable_aggregates=self.memory)),
            funds=self.funds,
            open_meter=None,  # type: ignore[arg-type]
            clock_ms=lambda: self.now_ms,
            wall=WallWatch(Clock(wall=lambda: self.now_ms / 1000)),
        )
        self.buyer = Buyer(
            terms=TERMS_HERE,
            limits=BuyerLimits(
                Caps(1_000_000, 10**9, 10**9, 50_000), Pace(10, 10_000, 4), TOLERANCE, 10**6, MIN_VOLTAGE_MV
            ),
            account=PaymentAccount(),
            track=EnergyTrack(CHIP_BASE_UWH),
            day_sent_msat=lambda account: account.sent_msat,
            next_sequence=1,
            opened_ms=0,
        )
        self.buyer.wait_for_onchain()
        self.side = OnchainSide(
            SETTINGS,
            equipment,
            lambda text: None,
            self.buyer,
            cast(SocketStream, self),
            self.inbox.append,
            lambda: None,
        )
        self.turn()

    def turn(self) -> None:
        """The deciding thread has its turn, and everything that comes of it."""
        side = self.side
        if side is None:
            return
        try:
            for _ in range(3):
                self.now_ms += 300
                self.buyer.on_reading(self.now_ms, CHIP_BASE_UWH + self.energy_uwh, 1_300_000, 48_000)
                self.tell()
                for payment in self.buyer.decide(self.now_ms):
                    assert payment.version is not None
                    side.payments.pay(payment.sequence, payment.amount_msat, payment.version)
                side.tick(self.now_ms)
                self.take_all(side)
        except Kill:
            self.side = None

    def tell(self) -> None:
        last = self.buyer.statement or STATEMENT
        self.buyer.charge.statement = replace(
            last,
            sequence=last.sequence + 1,
            state=SocketState.SETTLING if self.is_over else SocketState.DELIVERING,
            energy_uwh=self.energy_uwh,
            charged_msat=charge(self.energy_uwh),
        )
        vars(self.buyer.charge)["_believed"] = self.buyer.charge.statement.claim  # as if it was compared: it is true
        if self.is_over:
            self.buyer.end("socket_closed", "it is over")

    def take_all(self, side: OnchainSide) -> None:
        while self.inbox:
            match self.inbox.pop(0):
                case OnchainInvitation() | VersionAccepted() | RefusedVersion() | FinalDue() as message:
                    side.on_message(message, self.now_ms)
                case Arrived() | Failed() | InDoubt() | DoubtsChecked() as event:
                    self.buyer.on_payment(event, self.now_ms)
                case other:
                    side.on_event(other, self.now_ms)

    def save(self) -> None:
        """As the run does every now and then."""
        if self.side is not None:
            self.session = replace(
                self.session,
                energy_uwh=self.buyer.track.energy_uwh,
                delivered_ms=self.buyer.charge.most_delivered_ms(self.now_ms) or 0,
                saved_at=self.now_ms // 1000,
            )

    # What a history is made of.

    def step(self, kind: str, amount: int) -> None:
        match kind:
            case "deliver":
                paid_sat = self.credited[-1].value_sat if self.credited else 0
                if not self.is_over and charge(self.energy_uwh + amount) <= paid_sat * 1000:
                    self.energy_uwh += amount
            case "accept" | "withhold" | "refuse" | "claim and refuse":
                self.answers = kind
            case "save":
                self.save()
            case "late":
                self.now_ms += 11_000
            case "final":
                self.close(FinalDue(self.owed_sat, charge(self.energy_uwh), 0), amount)
            case "false final":
                charged = charge(self.energy_uwh) + amount * 100
                self.close(FinalDue(final_value_sat(charged, 0, RULES.floor_sat), charged, 0), amount)
            case "take":
                self.takes_final = True
            case "kill":
                self.lives_for = amount % 12
            case "restart":
                if self.side is None and not self.is_over:
                    self.begin()
            case "put back":
                self.put_back()
        self.turn()

    def put_back(self) -> None:
        """The ledger is a copy that lacks nothing but the final version, and a run finds the socket still waiting."""
        row = self.memory.row
        if row is not None and row.final_sat is not None:
            self.lives_for = None
            self.memory.rows[SESSION] = replace(row, final_sat=None, is_final_taken=False)
            self.begin()

    @property
    def owed_sat(self) -> int:
        return final_value_sat(charge(self.energy_uwh), 0, RULES.floor_sat)

    def close(self, due: FinalDue, times: int) -> None:
        self.is_over = True
        self.inbox += [due] * (1 + times % 5)

    def sign_receipt(self, kind: str, amount: int) -> None:
        """The socket signs its account; ``kind`` says how true it is."""
        if kind == "none" or not self.credited:
            return
        newest = self.credited[-1].value_sat
        final = next((held.value_sat for held in self.held if held.is_final), None)
        value_sat = final if self.takes_final and final is not None else newest
        message = pb.Receipt(
            session_id=SESSION, node_id=SOCKET_NODE, cable_node_id=CABLE_NODE, outlet_id="A1", method=pb.METHOD_ONCHAIN,
            stop_reason="cable_closed", tariff=pb.Tariff(tariff_id=TARIFF.tariff_id),
            energy_uwh=self.energy_uwh, credited_msat=newest * 1000, charged_msat=charge(self.energy_uwh),
            onchain_credited_msat=newest * 1000, onchain_value_sat=value_sat, refund_status=pb.REFUND_STATUS_OWED,
        )  # fmt: skip
        if kind == "less":
            message.onchain_value_sat = max(0, value_sat - amount)
        elif kind == "more":
            message.charged_msat += amount * 1000
        self.receipt = read_receipt(SignedReceipt(message.SerializeToString(), "signed"), SOCKET_NODE, SESSION)
        self.session = replace(self.session, receipt=self.receipt.signed.receipt, receipt_signature="signed")

    def end(self, receipt: str, amount: int) -> None:
        """The session ends for the cable, in this run or in a later one that finds it over."""
        self.is_over = True
        self.sign_receipt(receipt, amount)
        self.turn()
        if self.side is not None:
            try:
                self.save()
                self.side.finish(self.receipt)
                self.session = replace(self.session, closed_at=self.now_ms // 1000)
                return
            except Kill:
                self.side = None
        self.lives_for = None
        self.now_ms += 5_000
        reading = Reading(CHIP_BASE_UWH + self.energy_uwh, 0, 0, 0, self.now_ms)
        self.session = found_over(self.session, reading, Moment(self.now_ms // 1000))

    def mined(self, value_sat: int) -> CableAggregate:
        """A block has a transaction that pays ``value_sat`` to the socket's script; as it is judged."""
        row = self.memory.row
        assert row is not None
        outputs = (((row.script, value_sat),) if value_sat else ()) + ((script_of("elsewhere"), 1_000),)
        self.funds.mined.append(WalletTx("22" * 32, 101, frozenset(item.outpoint for item in row.inputs), outputs))
        now_s = self.now_ms // 1000
        journal = FakeLightning(lambda *_: None)
        aftermath = Aftermath(
            self.funds, self.memory, journal, lambda text: None, lambda: now_s,
            lambda session_id: saved_evidence(self.session, 0, TOLERANCE, Moment(now_s)),
        )  # fmt: skip
        try:
            aftermath.look_at_all(None)
        except Kill:
            aftermath.look_at_all(None)
        assert self.memory.row is not None
        return self.memory.row

    @property
    def word_sat(self) -> int:
        """So much the socket may have mined by its own word."""
        words = [max((held.value_sat for held in self.credited), default=0)]
        words += [held.value_sat for held in self.held if held.is_final and self.takes_final]
        words += [self.receipt.onchain_value_sat] if self.receipt is not None else []
        return min(words)

    def bounds(self) -> tuple[int, int]:
        """What is due at the least and at the most, reckoned from what really happened."""
        most_uwh = self.energy_uwh + TOLERANCE.allowed_uwh(self.energy_uwh)
        least, most = self.owed_sat, final_value_sat(charge(most_uwh), 0, RULES.floor_sat)
        row = self.memory.row
        assert row is not None
        words = [] if row.final_sat is None else [row.final_sat]
        if self.receipt is not None:
            told = self.receipt
            words += [told.onchain_value_sat, final_value_sat(told.charged_msat, 0, RULES.floor_sat)]
        return min([least, *words]), min([most, *words])


def charge(energy_uwh: int) -> int:
    return cost_msat(TARIFF, energy_uwh, 0, True)


SETTINGS = CableSettings.model_validate(
    {
        "socket": {"address": f"{SOCKET_NODE}@127.0.0.1:1"},
        "node": {"rpc": "lightning-rpc"},
        "meter": {"driver": "ina228", "bus": "sim:toaster", "address": 65, "shunt_ohms": 0.001, "max_current_a": 40},
        "limits": {
            "max_price_msat_per_kwh": 900_000_000,
            "max_prepaid_msat": 1_000_000,
            "max_session_msat": 10**9,
            "max_day_msat": 10**9,
        },
        "onchain": {**asdict(ONCHAIN), "max_fee_ratio": 1.0},
    }
)


@pytest.fixture(autouse=True)
def without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def inline(*_arguments: Any, **_more: Any) -> Inline:
        return Inline()

    monkeypatch.setattr("wattline.cable.pay.onchain.ThreadPoolExecutor", inline)


KINDS = ["deliver"] * 5 + ["accept"] * 2 + ["withhold", "refuse", "save", "late", "kill", "kill", "restart", "restart"]
KINDS += ["claim and refuse"] * 2
ENDS = [
    "final",
    "final",
    "false final",
    "take",
    "kill",
    "restart",
    "save",
    "accept",
    "withhold",
    "put back",
    "put back",
]
histories = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 300_000)), min_size=3, max_size=25)
ends = st.lists(st.tuples(st.sampled_from(ENDS), st.integers(0, 20_000)), max_size=5)


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    histories,
    ends,
    st.sampled_from(["none", "none", "true", "less", "more"]),
    st.integers(0, 2_000),
    st.integers(0, 50),
)
def test_who_has_more_mined_than_is_due_is_accused_and_nobody_else(
    history: list[tuple[str, int]], end: list[tuple[str, int]], receipt: str, amount: int, which: int
) -> None:
    life = Life()
    for kind, number in history + end:
        life.step(kind, number)
    life.end(receipt, amount)
    row = life.memory.row
    if row is None or not life.held:
        return
    least_sat, most_sat = life.bounds()
    # Any version that was ever handed over, or something else that spends the inputs.
    value_sat = [0, *(held.value_sat for held in life.held)][which % (len(life.held) + 1)]
    judged = life.mined(value_sat)
    assert not judged.status.is_live
    if value_sat <= least_sat:
        assert judged.status not in ACCUSED, (value_sat, least_sat, judged)
    if value_sat > most_sat:
        assert judged.status in ACCUSED, (value_sat, most_sat, judged)
    if value_sat <= life.word_sat:
        assert judged.status is not CableAggregateStatus.CHEATED, (value_sat, life.word_sat, judged)


def test_of_two_final_versions_after_the_ledger_was_put_back_the_last_is_due_and_both_keep_to_the_own_meter() -> None:
    life = Life()
    for kind, number in [("deliver", 500_000), ("deliver", 500_000), ("take", 0), ("false final", 200)]:
        life.step(kind, number)
    life.step("put back", 0)
    life.step("final", 0)
    life.end("none", 0)
    first, second = (held.value_sat for held in life.held if held.is_final)
    newest = max(held.value_sat for held in life.held)
    _, most_sat = life.bounds()
    assert second < first < newest
    assert first <= final_value_sat(
        charge(life.energy_uwh + TOLERANCE.allowed_uwh(life.energy_uwh)), 0, RULES.floor_sat
    )
    assert most_sat == second
    assert life.mined(first).status is CableAggregateStatus.CHEATED
