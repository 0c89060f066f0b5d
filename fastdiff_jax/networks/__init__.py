"""Raw networks as pure (init, apply) pairs; Flax modules stay inside this folder."""
