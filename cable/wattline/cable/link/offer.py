"""What a socket sells: fetched, and believed only after every check.

The order of the checks is the order in which a person would want to hear of what is wrong.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError

from wattline.cable.link.transport import (
    NotWattline,
    PresentedCertificate,
    SocketUnreachable,
    details_of,
    fetch_certificate,
    open_channel,
)
from wattline.cable.policy.onchain_limits import rules_from
from wattline.cable.settings import LimitSettings, SocketAddress
from wattline.core.aggregate import OnchainRules
from wattline.core.errors import StopError
from wattline.core.lightning.node import Signer
from wattline.core.lightning.signing import is_signed_by
from wattline.core.tariff import Tariff
from wattline.core.wire.reading import OutOfRange, admitted
from wattline.v1 import charging_pb2 as pb
from wattline.v1 import charging_pb2_grpc as pb_grpc

NONCE_BYTES = 32
CALL_TIMEOUT_S = 10.0
LONGEST_VALID_S = 86_400
"""No offer is made for longer."""
METHODS = {"keysend": pb.METHOD_KEYSEND, "onchain": pb.METHOD_ONCHAIN}


class OfferError(StopError):
    """An offer that the cable does not take; the code says why."""


@dataclass(frozen=True, slots=True)
class OfferedOutlet:
    outlet_id: str
    max_power_mw: int
    available: bool
    unavailable_reason: str


@dataclass(frozen=True, slots=True)
class Offer:
    """An offer whose signature, certificate and nonce have been checked. The nonce makes it fresh: that it has ended by
    some clock means nothing."""

    node_id: str
    network: str
    tariff: Tariff
    outlets: tuple[OfferedOutlet, ...]
    methods: tuple[str, ...]
    expires_at: int
    """Unix seconds by the socket's clock."""
    credit_cap_msat: int
    min_increment_msat: int
    statement_interval_ms: int
    pause_max_s: int
    open_timeout_s: int
    cable_lost_s: int
    min_refund_msat: int
    onchain: OnchainRules | None = None
    """None when it takes nothing on-chain."""


@dataclass(frozen=True, slots=True)
class OpenedSocket:
    """A channel to a socket together with the offer that vouches for it. The caller closes the channel."""

    channel: grpc.Channel
    certificate: PresentedCertificate
    offer: Offer


def tariff_from(message: pb.Tariff) -> Tariff:
    """A tariff of a message that was admitted."""
    return Tariff(
        tariff_id=message.tariff_id,
        energy_msat_per_kwh=message.energy_msat_per_kwh,
        time_msat_per_hour=message.time_msat_per_hour,
        session_fee_msat=message.session_fee_msat,
    )


def open_socket(address: SocketAddress, signer: Signer, network: str) -> OpenedSocket:
    """Connect, fetch the offer and check who made it. Raises SocketUnreachable, NotWattline, OfferError."""
    certificate = fetch_certificate(address)
    channel = open_channel(certificate)
    try:
        nonce = os.urandom(NONCE_BYTES)
        response = _get_offer(channel, address, nonce)
        offer = verify_offer(response, address, certificate, nonce, signer, network)
    except BaseException:
        channel.close()
        raise
    return OpenedSocket(channel, certificate, offer)


def _get_offer(channel: grpc.Channel, address: SocketAddress, nonce: bytes) -> pb.GetOfferResponse:
    stub = pb_grpc.ChargingServiceStub(channel)
    try:
        response: pb.GetOfferResponse = stub.GetOffer(pb.GetOfferRequest(nonce=nonce), timeout=CALL_TIMEOUT_S)
    except grpc.RpcError as error:
        code, details = error.code(), details_of(error)
        if code in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL):
            raise NotWattline(address, f"it has no ChargingService ({details})") from error
        # The TLS handshake has succeeded a moment ago, so a peer that speaks no HTTP/2 shows here as unavailable too.
        raise SocketUnreachable(address, details) from error
    return response


def verify_offer(
    response: pb.GetOfferResponse,
    address: SocketAddress,
    certificate: PresentedCertificate,
    nonce: bytes,
    signer: Signer,
    network: str,
) -> Offer:
    """The offer in ``response`` when it is genuine, fresh, made for this connection and by the right node."""
    message = pb.Offer()
    try:
        message.ParseFromString(admitted(response).offer)
        admitted(message)
    except DecodeError as error:
        raise NotWattline(address, "its offer cannot be read") from error
    except OutOfRange as error:
        raise OfferError("offer_invalid", f"the offer from {address.target} cannot be: {error.message}") from error
    if not is_signed_by(signer, "offer", response.offer, response.signature, message.node_id):
        raise OfferError("offer_forged", f"the offer from {address.target} is not signed by node {message.node_id}")
    if message.certificate_sha256 != certificate.sha256:
        raise OfferError(
            "offer_forged",
            f"the offer is for certificate {message.certificate_sha256.hex()[:16]}..., but {address.target} presents "
            f"{certificate.sha256.hex()[:16]}...: somebody may sit in between",
        )
    if message.nonce != nonce:
        raise OfferError(
            "offer_replayed", f"the offer from {address.target} answers another request: an old one replayed"
        )
    if address.node_id is not None and message.node_id != address.node_id:
        raise OfferError(
            "socket_not_pinned",
            f"the socket at {address.target} is node {message.node_id}, but the configuration names {address.node_id}",
        )
    if message.network != network:
        raise OfferError("wrong_network", f"the socket is on {message.network or '?'}, the cable's node on {network}")
    return Offer(
        node_id=message.node_id,
        network=message.network,
        tariff=tariff_from(message.tariff),
        outlets=tuple(
            OfferedOutlet(item.outlet_id, item.max_power_mw, item.available, item.unavailable_reason)
            for item in message.outlets
        ),
        methods=tuple(name for name, number in METHODS.items() if number in message.methods),
        expires_at=message.expires_at,
        credit_cap_msat=message.credit_cap_msat,
        min_increment_msat=message.min_increment_msat,
        statement_interval_ms=message.statement_interval_ms,
        pause_max_s=message.pause_max_s,
        open_timeout_s=message.open_timeout_s,
        cable_lost_s=message.cable_lost_s,
        min_refund_msat=message.min_refund_msat,
        onchain=rules_from(message.onchain) if message.HasField("onchain") else None,
    )


def clocks_apart(offer: Offer, now_s: float) -> str | None:
    """For people, when the socket's clock and this machine's cannot both be right; None when they may be."""
    apart_s = int(now_s) - offer.expires_at
    if apart_s > 0:
        return f"this machine's clock is at least {apart_s} s ahead of the socket's"
    if -apart_s > LONGEST_VALID_S:
        return f"this machine's clock is at least {-apart_s - LONGEST_VALID_S} s behind the socket's"
    return None


def check_prices(tariff: Tariff, limits: LimitSettings) -> None:
    """Raises OfferError ``price_too_high`` naming both prices."""
    for what, unit, asked, limit, key in (
        ("energy", "msat/kWh", tariff.energy_msat_per_kwh, limits.max_price_msat_per_kwh, "max_price_msat_per_kwh"),
        (
            "time",
            "msat/h",
            tariff.time_msat_per_hour,
            limits.max_time_price_msat_per_hour,
            "max_time_price_msat_per_hour",
        ),
        ("a session", "msat", tariff.session_fee_msat, limits.max_session_fee_msat, "max_session_fee_msat"),
    ):
        if asked > limit:
            raise OfferError(
                "price_too_high", f"the socket asks {asked} {unit} for {what}; the limit is {limit} {unit} ({key})"
            )


def check_keeps(offer: Offer, limits: LimitSettings) -> None:
    """Raises OfferError ``socket_keeps_too_much`` naming both amounts."""
    if offer.min_refund_msat > limits.most_kept_msat:
        raise OfferError(
            "socket_keeps_too_much",
            f"the socket keeps unused credit below {offer.min_refund_msat} msat; the limit is {limits.most_kept_msat} "
            "msat (max_kept_msat; where it is left out it follows from max_prepaid_msat)",
        )


def choose_outlet(offer: Offer, wanted: str | None) -> OfferedOutlet:
    """The outlet to use. Raises OfferError ``unknown_outlet``, ``outlet_busy`` or ``outlet_faulted``."""
    if wanted is None:
        for outlet in offer.outlets:
            if outlet.available:
                return outlet
        reasons = ", ".join(f"{o.outlet_id}: {o.unavailable_reason or 'busy'}" for o in offer.outlets) or "it has none"
        raise OfferError("outlet_busy", f"no outlet of the socket is available ({reasons})")
    for outlet in offer.outlets:
        if outlet.outlet_id == wanted:
            if not outlet.available:
                reason = outlet.unavailable_reason or "busy"
                raise OfferError("outlet_busy", f"outlet {wanted} is not available: {reason}")
            return outlet
    known = ", ".join(o.outlet_id for o in offer.outlets) or "none"
    raise OfferError("unknown_outlet", f"the socket has no outlet {wanted!r}; it has: {known}")


def check_method(offer: Offer, method: str) -> None:
    """``method`` as in the configuration. Raises OfferError ``method_not_supported``."""
    wanted = METHODS if method == "auto" else (method,)
    if not any(name in offer.methods for name in wanted):
        if not offer.methods:
            raise OfferError(
                "method_not_supported",
                "the socket's node can take no payments just now; its operator sees why in wattline-status",
            )
        raise OfferError(
            "method_not_supported", f"the socket takes {', '.join(offer.methods) or 'no known method'}, not {method}"
        )
