"""What the node stands on: the practice chain with its pretended wallet, or a bitcoind with a real one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from wattline.core.errors import WattlineError
from wattline.regtest.bitcoind_rpc import BitcoindRpc
from wattline.regtest.node.bitcoin_blocks import BitcoinBlocks
from wattline.regtest.node.bitcoin_funds import BitcoinFunds
from wattline.regtest.node.bitcoin_wallet import BitcoinWallet
from wattline.regtest.node.blocks import PracticeBlocks
from wattline.regtest.node.chain_view import ChainView
from wattline.regtest.node.coins import Coins
from wattline.regtest.node.feerates import Feerates
from wattline.regtest.node.funds import Funds, PracticeFunds
from wattline.regtest.node.log import Log
from wattline.regtest.node.movements import Movements
from wattline.regtest.node.options import OptionError, Options
from wattline.regtest.node.rpc_server import RpcServer
from wattline.regtest.node.store import Store
from wattline.regtest.node.wallet_rpc import WalletRpc, refuse_all

FILE_POLL_S = 0.05
BITCOIND_POLL_S = 0.2


class Ground(Protocol):
    @property
    def chain(self) -> ChainView: ...

    @property
    def funds(self) -> Funds: ...

    @property
    def poll_s(self) -> float:
        """How often the chain is asked for news."""

    async def open(self, name: str) -> None:
        """Before the node says anything of chain or wallet. Raises OptionError when there is no bitcoind."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class PracticeGround:
    chain: PracticeBlocks
    funds: PracticeFunds
    poll_s: float = FILE_POLL_S

    async def open(self, name: str) -> None:
        await self.chain.open()

    async def close(self) -> None:
        self.chain.close()


@dataclass(frozen=True, slots=True)
class BitcoinGround:
    chain: BitcoinBlocks
    funds: BitcoinFunds
    wallet: BitcoinWallet
    poll_s: float = BITCOIND_POLL_S

    async def open(self, name: str) -> None:
        try:
            await self.wallet.open(name)
            await self.chain.open()
        except WattlineError as error:
            raise OptionError(f"Could not connect to bitcoind: {error.message}") from error

    async def close(self) -> None:
        # It may be gone already; then the wallet is loaded with it the next time, and found.
        with contextlib.suppress(WattlineError):
            await self.wallet.close()


def ground_of(
    options: Options, store: Store, height: Callable[[], int], has_channel: Callable[[], bool], rpc: RpcServer, log: Log
) -> Ground:
    """By the options: ``practice-chain`` names the file of a practice chain, ``bitcoin-...`` a bitcoind."""
    if options.text("practice-chain"):
        refuse_all(rpc)
        blocks = PracticeBlocks(options.path("practice-chain"))
        return PracticeGround(blocks, PracticeFunds(store, blocks))
    bitcoind = BitcoindRpc(options.number("bitcoin-rpcport", 0), options.path("bitcoin-datadir"))
    movements = Movements(store)
    wallet = BitcoinWallet(bitcoind, store, movements)
    coins = Coins(wallet, movements, height, has_channel)
    feerates = Feerates(wallet.ask)
    WalletRpc(wallet, coins, feerates, movements, height, rpc)
    return BitcoinGround(
        BitcoinBlocks(bitcoind, store, wallet, log), BitcoinFunds(wallet, coins, feerates, height), wallet
    )
