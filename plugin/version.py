"""The version of wchan, in one place."""

VERSION = "0.1.0"
