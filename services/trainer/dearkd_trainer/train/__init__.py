"""DearKD's two stages: aligner, losses, optimiser steps and the loop."""
