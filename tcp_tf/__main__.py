"""`python -m tcp_tf`, the same as the command `tcp_tf`."""

from tcp_tf import cli

if __name__ == "__main__":
    cli.command()
