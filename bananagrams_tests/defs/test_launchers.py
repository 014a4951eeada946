"""A training where the profile says: what is asked of that place, and what its silence means."""

from __future__ import annotations

import builtins
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest
from moto import mock_aws
from moto.ec2.utils import random_private_ip  # noqa: F401
from moto.core import DEFAULT_ACCOUNT_ID  # noqa: F401

from bananagrams_assets.config import Profile
from bananagrams_assets.defs import launchers
from bananagrams_assets.learn import launch
from bananagrams_assets.learn.launch import LaunchError

from ..learn.tiny import profile
