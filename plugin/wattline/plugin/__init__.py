"""The shell: lightningd's options, hook, notifications and RPC methods, the gRPC service, and one loop per outlet."""
