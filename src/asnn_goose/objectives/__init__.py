"""What a loss needs beside its kernels: terms on hidden states, numbers that change over a run, temperatures."""
