"""One file per operation and backend: each kernel computes what its reference computes, only faster."""
