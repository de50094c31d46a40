"""``python -m convt_ext``: prints the report of :mod:`convt_ext.doctor`; exits with 1 if its self-check fails."""

import sys

from .doctor import report

if __name__ == "__main__":
    sys.exit(0 if report() else 1)
