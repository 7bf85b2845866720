"""The block chain as wattline sees it: :mod:`wattline.bitcoin.chain` says what is asked of it, and
:mod:`wattline.bitcoin.bitcoind` asks a bitcoind."""
