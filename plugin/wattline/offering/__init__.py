"""What a socket offers, as ``socket.toml`` says it: outlets with their meters and relays, prices, rules of a session.

Apart from the plugin, because the command line reads that file as well."""

from wattline.offering.onchain import OnchainSettings
from wattline.offering.settings import LimitSettings, OutletSettings, SocketSettings, TariffSettings

__all__ = ["LimitSettings", "OnchainSettings", "OutletSettings", "SocketSettings", "TariffSettings"]
