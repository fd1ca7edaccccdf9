"""The lab: systemd machines on this computer, for trying everything else for real.

The role ``lab_node`` calls ``python -m harness.lab`` for the steps whose order matters when they are
cut short.
"""
