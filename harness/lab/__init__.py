"""The lab: systemd machines on this computer, for tests against real systems."""
