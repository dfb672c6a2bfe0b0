"""`python -m asnn_goose` and `accelerate launch -m asnn_goose`: the command line."""

from asnn_goose.cli import main

if __name__ == "__main__":
    main()
