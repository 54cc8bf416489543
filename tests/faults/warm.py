"""What every fork of the server would do again: how far the shortcuts of the task come that these runs learn, which a
process finds once and keeps."""

from pretrain.tasks.shortcuts import floor_of
from tests.faults.kinds import TASK

floor_of(TASK["task"], TASK["parameters"])
