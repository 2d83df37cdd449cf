#!/usr/bin/env bash
# Trains the supernet unless it is there, and exports a package for every device of the fleet file. For any CI: what it
# keeps between runs is the folder SUPERNET alone, and DIST where packages that did not change shall not be built again.
#
# Exit codes are bitfleet's. 1: a promise is broken, or a device got worse than BASELINE allows. 3: a device of the fleet
# file cannot be served; the others' packages are whole, and a line says with which budget it would be. Let that fail,
# too, until somebody raises the budget or takes the device out.
set -euo pipefail

MODEL=${MODEL:-smollm2-135m-instruct} # a Hugging Face folder, a hub id or a .gguf file
MINUTES=${MINUTES:-15}                # of training
TRAIN=${TRAIN:-}                      # more options of `bitfleet train`
SUPERNET=${SUPERNET:-supernet}        # what a CI caches
FLEET=${FLEET:-fleet.toml}
DIST=${DIST:-dist}
VERIFY=${VERIFY---verify}     # empty: verify nothing here
BASELINE=${BASELINE:-}        # the index.json of an older export, where there is one
ALLOW=${ALLOW:-2%}            # by how much a device may be worse, bigger or slower than there

# A training that was stopped is gone on with.
if ! grep -qs '"finished": true' "$SUPERNET/supernet.json"; then
  # shellcheck disable=SC2086 # several options
  bitfleet train "$MODEL" --minutes "$MINUTES" $TRAIN --resume --out "$SUPERNET"
fi

if [ ! -e "$BASELINE" ]; then
  echo "no baseline${BASELINE:+ at $BASELINE}: nothing to compare with" >&2
  BASELINE=
fi
# `exec`, so that a signal reaches bitfleet, which leaves nothing half written.
exec bitfleet fleet "$FLEET" --supernet "$SUPERNET" --export "$DIST" $VERIFY ${BASELINE:+--baseline "$BASELINE" --allow "$ALLOW"}
