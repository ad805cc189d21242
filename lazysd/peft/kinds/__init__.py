"""One file a kind of adapter; see lazysd.peft.kind."""
