"""What a loss needs beside its kernels: numbers that change over a run, and temperatures that learn."""
