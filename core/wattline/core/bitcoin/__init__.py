"""The block chain as wattline sees it: :mod:`wattline.core.bitcoin.chain` says what is asked of it, and
:mod:`wattline.core.bitcoin.bitcoind` asks a bitcoind."""
