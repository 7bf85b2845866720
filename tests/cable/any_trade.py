"""One session that is paid on-chain or goes over to that, at a socket that says anything: the real session, payers,
client of lightningd and ledger, without threads and with a clock of its own. Whatever it does against the rules is kept
in ``broken``."""

from __future__ import annotations

import itertools
import queue
from typing import Any

from google.protobuf.message import DecodeError

from tests.cable.fake_funds import RULES, address_of, rules_message, script_of
from tests.cable.fakes import SOCKET_NODE
from tests.cable.judged_node import OWN, JudgedNode, zbase_of
from tests.cable.test_any_socket import CERTIFICATE, Channel
from tests.cable.test_onchain_caps import TARIFF, TERMS_HERE
from tests.cable.threadless import MAX_PREPAID_MSAT, MAX_PREPAID_SAT, MAX_SESSION_SAT, NODES, Shown, settings_for
from tests.core.wire.messages import EVIL
from wattline.cable.closing import StopWish, Summary
from wattline.cable.link.stream import Cut, SocketStream, StreamTiming
from wattline.cable.link.transport import OpenedSocket, read_receipt
from wattline.cable.opening import Agreement, Equipment
from wattline.cable.policy.events import MethodName, SignedReceipt
from wattline.cable.policy.offer import Offer
from wattline.cable.restoring import found_over
from wattline.cable.service import make_aftermath
from wattline.cable.session_run import SessionRun
from wattline.core.aggregate import final_value_sat
from wattline.core.bitcoin.chain import TxOutput
from wattline.core.bitcoin.psbt import unsigned_tx
from wattline.core.clock import Clock, WallWatch
from wattline.core.errors import WattlineError
from wattline.core.ids import encode_session_id
from wattline.core.ledger.cable import CableAggregate, CableAggregateStatus, CableSession
from wattline.core.ledger.ledger import Ledger
from wattline.core.lightning.cln import CoreLightning
from wattline.core.lightning.cln_onchain import CoreLightningFunds
from wattline.core.lightning.node import NodeInfo, signed_text
from wattline.core.lightning.onchain import WalletTx
from wattline.core.payer import Payer
from wattline.core.tariff import Tariff, cost_msat
from wattline.device.meters.reading import Reading
from wattline.v1 import charging_pb2 as pb

ACCUSED = {CableAggregateStatus.CHEATED, CableAggregateStatus.UNANSWERED}
CHIP_BASE_UWH = 7_000
STEP_MS = 300
NUMBERS = itertools.count(1)
ADDRESS, SCRIPT = address_of("socket"), script_of("socket")


class Trade:
    """One session, over as many runs of the cable as it takes."""

    def __init__(self, ledger: Ledger, method: str, prices: Tariff = TARIFF) -> None:
        self.settings, self.prices = settings_for(method), prices
        self.begins_with: MethodName = "onchain" if method == "onchain" else "keysend"
        self.ledger, self.node = ledger, JudgedNode(SOCKET_NODE)
        path = str(next(NUMBERS))
        NODES[path] = self.node
        self.session_id = encode_session_id(next(NUMBERS).to_bytes(16, "big"))
        self.now_ms, self.own_uwh, self.told_uwh = 1_000, 0, 0
        self.voltage_mv = 48_000
        self.keysend_msat = 0
        self.sequence = 0
        self.answers = "accept"
        self.handed: dict[int, bytes] = {}
        """All that left, by value."""
        self.last_handed = (0, 0)
        self.credited: list[tuple[int, int]] = []
        self.closed = ""
        """Why the cable wants the end, by its own word to the socket."""
        self.broken: list[str] = self.node.broken
        self.shown = Shown()
        self.ends: list[Summary | WattlineError] = []
        self.node.on_signing = self.signs
        self.node.on_payment = self.pays
        wallet = CoreLightning(path)
        self.equipment = Equipment(
            node=wallet,
            payer=Payer(wallet, ledger.outgoing, pause=lambda seconds: None),
            ledger=ledger,
            funds=CoreLightningFunds(wallet.rpc),
            open_meter=None,  # type: ignore[arg-type]
            clock_ms=lambda: self.now_ms,
            wall=WallWatch(
                Clock(lambda: 1_700_000_000 + self.now_ms / 1000, lambda: self.now_ms * 1_000_000, lambda: "a boot")
            ),
        )
        self.remembered = CableSession(
            token=next(NUMBERS).to_bytes(32, "big").hex(), address="x:1", node_id=SOCKET_NODE, outlet_id="A1",
            tariff=prices, rated_power_mw=TERMS_HERE.rated_power_mw, created_at=int(self.equipment.now()),
        )  # fmt: skip
        ledger.cable_sessions.save(self.remembered)
        self.run: SessionRun | None = None
        self.begin()

    # What must hold at every moment.

    @property
    def row(self) -> CableAggregate | None:
        return self.ledger.cable_aggregates.of(self.session_id)

    def most_msat(self, allowed_uwh: int) -> int:
        return cost_msat(self.prices, self.own_uwh + allowed_uwh, self.most_ms, True)

    @property
    def most_ms(self) -> int:
        """For so long, at the most, energy can have been delivered, where time has a price."""
        return 0

    @property
    def told_ms(self) -> int:
        """For so long it was, by the socket."""
        return max(0, self.now_ms - 1_000)

    def signs(self, outputs: list[TxOutput]) -> None:
        """The wallet signs: what it may be, by what the cable itself knows to have flowed."""
        row = self.row
        assert row is not None
        value_sat, drift_uwh = outputs[0].value_sat, self.settings.limits.tolerance.drift_uwh(self.own_uwh)
        owed_msat = max(0, self.most_msat(drift_uwh) - self.keysend_msat)
        if value_sat * 1000 > owed_msat + (row.floor_sat + MAX_PREPAID_SAT) * 1000:
            self.broken.append(
                f"{value_sat} sat signed where {owed_msat} msat are owed, with a floor of {row.floor_sat}"
            )
        if row.floor_sat > self.settings.onchain.max_floor_sat:
            self.broken.append(f"a floor of {row.floor_sat} sat")
        if value_sat + row.fee_sat + -(-self.keysend_msat // 1000) > MAX_SESSION_SAT:
            self.broken.append(
                f"{value_sat} sat, a fee of {row.fee_sat} sat and {self.keysend_msat} msat in one session"
            )
        inputs_sat = sum(item.value_sat for item in row.inputs)
        change = TxOutput(inputs_sat - value_sat - row.fee_sat, script_of("cable-1"))
        if outputs != [TxOutput(value_sat, SCRIPT), change] and outputs[0].script != row.script:
            self.broken.append(f"outputs of the cable's own are {outputs}")

    def pays(self, amount_msat: int) -> None:
        self.keysend_msat += amount_msat
        drift_uwh = self.settings.limits.tolerance.drift_uwh(self.own_uwh)
        if self.keysend_msat > self.most_msat(drift_uwh) + MAX_PREPAID_MSAT:
            self.broken.append(f"{self.keysend_msat} msat paid for {self.own_uwh} uWh")

    # The cable.

    def begin(self) -> None:
        """A run opens the session, or takes it up."""
        known = self.ledger.cable_sessions.of(self.session_id) or self.remembered
        assert known.closed_at is None
        offer = Offer(
            node_id=SOCKET_NODE, network="regtest", tariff=self.prices, outlets=(), methods=("keysend", "onchain"),
            expires_at=2**33, credit_cap_msat=10**9, min_increment_msat=10, statement_interval_ms=100, pause_max_s=60,
            open_timeout_s=60, cable_lost_s=60, min_refund_msat=1_000, onchain=RULES,
        )  # fmt: skip
        channel: Any = Channel(())
        info = NodeInfo(OWN, "regtest", "v26.06.6", 500)
        agreement = Agreement(
            OpenedSocket(channel, CERTIFICATE, offer), known, pb.Open(token=bytes.fromhex(known.token)), info,
            self.begins_with,
        )  # fmt: skip
        run = SessionRun(self.settings, self.equipment, agreement, self.shown, StopWish())
        self.connection = SocketStream(channel, agreement.opening, known.session_id, run._mailbox.put, StreamTiming(60))
        run._stream = self.connection
        self.run = run
        self.guard(lambda run: self.read_meter(run))
        self.is_resumed = known.session_id is not None
        self.connect()
        self.turn()

    def connect(self) -> None:
        with self.connection._lock:
            self.connection._outgoing = queue.SimpleQueue()
        opened = pb.Opened(
            session_id=self.session_id,
            tariff=self.tariff,
            statement=self.statement(),
            resumed=self.is_resumed,
        )
        self.is_resumed = True
        self.say(pb.ChargeResponse(opened=opened))

    def cut(self) -> None:
        with self.connection._lock:
            self.connection._outgoing = None
        if self.run is not None:
            self.run._mailbox.put(Cut(EVIL.encode("unicode_escape").decode()))

    def guard(self, act: Any) -> None:
        """As the service does around a run."""
        if self.run is None:
            return
        try:
            act(self.run)
        except WattlineError as error:
            self.ends.append(error)
            self.run = None

    def read_meter(self, run: SessionRun) -> None:
        run._handle(self.now_ms, Reading(CHIP_BASE_UWH + self.own_uwh, 1_300_000, self.voltage_mv, 27_000, self.now_ms))

    def turn(self) -> None:
        for _ in range(2):
            self.now_ms += STEP_MS
            self.guard(self.decide)
            self.serve()

    def decide(self, run: SessionRun) -> None:
        self.read_meter(run)
        while len(run._mailbox):
            run._take(0)
        run._tick(self.now_ms)
        while len(run._mailbox):
            run._take(0)
        if run._is_over():
            self.finish(run)

    def finish(self, run: SessionRun) -> None:
        self.ends.append(run._finish())
        run._mailbox.put = lambda happening: None  # type: ignore[method-assign]
        self.run = None

    # The socket.

    def say(self, message: pb.ChargeResponse | bytes) -> None:
        """As :class:`SocketStream` hears it."""
        if self.run is None:
            return
        raw = message if isinstance(message, bytes) else message.SerializeToString()
        try:
            heard = self.connection._believable(pb.ChargeResponse.FromString(raw))
        except DecodeError:
            self.cut()
            return
        if heard is not None:
            self.run._mailbox.put(heard)

    def statement(self) -> pb.Statement:
        self.sequence += 1
        charged = self.charged_msat
        onchain_msat = self.newest[1] * 1000
        credited = onchain_msat + self.keysend_msat
        return pb.Statement(
            session_id=self.session_id, sequence=self.sequence, state=pb.SESSION_STATE_DELIVERING, relay_closed=True,
            energy_uwh=self.told_uwh, delivered_ms=self.told_ms, power_mw=1_300_000, voltage_mv=48_000,
            current_ma=27_000, credited_msat=credited, charged_msat=charged, balance_msat=credited - charged,
            payments=len(self.credited), onchain_credited_msat=onchain_msat, min_increment_msat=10,
        )  # fmt: skip

    @property
    def charged_msat(self) -> int:
        return cost_msat(self.prices, self.told_uwh, self.told_ms, True)

    @property
    def tariff(self) -> pb.Tariff:
        prices = self.prices
        return pb.Tariff(
            tariff_id=prices.tariff_id,
            energy_msat_per_kwh=prices.energy_msat_per_kwh,
            time_msat_per_hour=prices.time_msat_per_hour,
        )

    @property
    def newest(self) -> tuple[int, int]:
        return self.credited[-1] if self.credited else (0, 0)

    def invite(self, number: int | None = None, value_sat: int = 0) -> None:
        if number is None:
            number, value_sat = self.newest
        invitation = pb.OnchainInvitation(
            address=ADDRESS,
            script=SCRIPT,
            rules=rules_message(RULES),
            newest_number=number,
            newest_value_sat=value_sat,
        )
        self.say(pb.ChargeResponse(onchain_invitation=invitation))

    def claim_and_refuse(self) -> None:
        """By an invitation it says that it holds the version that came last, and then that it does not."""
        mind, self.answers = self.answers, "silent"
        self.turn()
        if self.handed:
            number, value_sat = self.last_handed
            self.invite(number, value_sat)
            self.turn()
            self.say(pb.ChargeResponse(version_refused=pb.VersionRefused(number=number, code="policy", message=EVIL)))
        self.answers = mind

    def serve(self) -> None:
        """What came up; answered as the socket is minded."""
        with self.connection._lock:
            outgoing = self.connection._outgoing
        while outgoing is not None and not outgoing.empty():
            request = outgoing.get()
            assert request is not None
            match request.WhichOneof("message"):
                case "close":
                    self.closed = request.close.reason
                case "onchain_request" if self.answers != "silent":
                    self.invite()
                case "aggregate_version":
                    self.take(request.aggregate_version)

    def take(self, version: pb.AggregateVersion) -> None:
        value_sat = unsigned_tx(version.psbt).outputs[0].value_sat
        row = self.row
        if row is None or row.signed_sat < value_sat:
            self.broken.append(f"{value_sat} sat are handed over before they are on record")
        self.handed[value_sat] = version.psbt
        self.last_handed = (version.number, value_sat)
        held = (version.number, value_sat)
        is_taken = held in self.credited or (version.number == self.newest[0] + 1 and value_sat > self.newest[1])
        match self.answers:
            case "accept" | "credit" if version.is_final or is_taken:
                if held not in self.credited and not version.is_final:
                    self.credited.append(held)
                accepted = pb.VersionAccepted(number=version.number, value_sat=value_sat, is_final=version.is_final)
                if self.answers == "accept":
                    self.say(pb.ChargeResponse(version_accepted=accepted))
            case "accept" | "refuse":
                code = "policy" if self.answers == "refuse" else "bad_version"
                refused = pb.VersionRefused(number=version.number, code=code, message=EVIL)
                self.say(pb.ChargeResponse(version_refused=refused))

    def receipt(self, near: pb.Receipt) -> pb.ChargeResponse:
        """One that is signed, and true but for what ``near`` says otherwise."""
        charged, row = self.charged_msat, self.row
        newest_sat = value_sat = self.newest[1]
        if row is not None and row.final_sat in self.handed:
            value_sat = row.final_sat
        credited, returned = newest_sat * 1000 + self.keysend_msat, (newest_sat - value_sat) * 1000
        made = pb.Receipt(
            outlet_id="A1", method=pb.METHOD_ONCHAIN, stop_reason="cable_closed", energy_uwh=self.told_uwh,
            delivered_ms=self.told_ms, tariff=self.tariff, credited_msat=credited, charged_msat=charged,
            refunded_msat=returned, returned_msat=returned, balance_msat=credited - charged - returned,
            payments=len(self.credited), onchain_credited_msat=newest_sat * 1000, onchain_value_sat=value_sat,
            onchain_txid=unsigned_tx(self.handed[value_sat]).txid if value_sat in self.handed else "",
            refund_status=pb.REFUND_STATUS_KEPT,
        )  # fmt: skip
        made.MergeFrom(near)
        made.session_id, made.node_id, made.cable_node_id = self.session_id, SOCKET_NODE, OWN
        content = made.SerializeToString()
        signature = zbase_of(signed_text("receipt", content), SOCKET_NODE)
        return pb.ChargeResponse(receipt=pb.SignedReceipt(receipt=content, signature=signature))

    # What a history is made of.

    def step(self, kind: str, value: Any) -> None:
        match kind:
            case "say":
                self.say(value)
            case "say of this session":
                for name in ("opened", "statement"):
                    if value.HasField(name):
                        getattr(value, name).session_id = self.session_id
                self.say(value)
            case "flow":
                self.own_uwh += value
                self.turn()
                self.told_uwh += value
                self.say(pb.ChargeResponse(statement=self.statement()))
            case "count more":
                self.told_uwh += value // 10
                self.say(pb.ChargeResponse(statement=self.statement()))
            case "answers":
                self.answers = value
            case "no way":
                self.node.carries = lambda amount_msat: False
            case "invite":
                self.invite()
            case "claim and refuse":
                self.claim_and_refuse()
            case "final":
                charged = self.charged_msat
                due = final_value_sat(charged, self.keysend_msat, RULES.floor_sat)
                final = pb.FinalDue(value_sat=due, charged_msat=charged, keysend_msat=self.keysend_msat)
                self.say(pb.ChargeResponse(final_due=final))
            case "receipt":
                self.say(self.receipt(value))
            case "cut":
                self.cut()
            case "connect":
                if self.run is not None:
                    self.connect()
            case "wait":
                self.now_ms += value // 10
            case "stop":
                if self.run is not None:
                    self.run._stop_wanted.want("operator", "enough")
            case "kill":
                self.kill()
        self.turn()

    def kill(self) -> None:
        """Nothing of this run happens any more; the next one takes up what is on record."""
        self.run = None
        saved = self.ledger.cable_sessions.of(self.session_id)
        if saved is not None and saved.closed_at is None:
            self.begin()

    # Afterwards.

    def judged(self, which: int) -> tuple[int, CableAggregate] | None:
        """The cable starts again, and finds one of the versions that it ever handed over in a block; as it judges."""
        self.run = None
        row, saved = self.row, self.ledger.cable_sessions.of(self.session_id)
        if row is None or saved is None or not self.handed:
            return None
        if saved.closed_at is None:
            reading = Reading(CHIP_BASE_UWH + self.own_uwh, 0, 0, 0, self.now_ms)
            self.ledger.cable_sessions.save(found_over(saved, reading, self.equipment.wall.now()))
        value_sat = sorted(self.handed)[which % len(self.handed)]
        tx = unsigned_tx(self.handed[value_sat])
        outputs = tuple((output.script, output.value_sat) for output in tx.outputs)
        self.node.mined.append(WalletTx(tx.txid, 501, tx.outpoints, outputs))
        aftermath = make_aftermath(self.settings, self.equipment, self.shown.event)
        assert aftermath is not None
        aftermath.look_at_all(None)
        judged = self.row
        assert judged is not None
        return value_sat, judged

    def due_sat(self, row: CableAggregate) -> int:
        """The most that is due, by what has really flowed, and by what the socket has signed."""
        saved = self.ledger.cable_sessions.of(self.session_id)
        assert saved is not None
        allowed_uwh = self.settings.limits.tolerance.allowed_uwh(self.own_uwh)
        due = [final_value_sat(self.most_msat(allowed_uwh), self.keysend_msat, row.floor_sat)]
        if row.final_sat is not None:
            due = [row.final_sat]
        if saved.receipt:
            told = read_receipt(SignedReceipt(saved.receipt, saved.receipt_signature), SOCKET_NODE, self.session_id)
            due += [told.onchain_value_sat, final_value_sat(told.charged_msat, self.keysend_msat, row.floor_sat)]
        return min(due)
