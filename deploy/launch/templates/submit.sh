#!/usr/bin/env bash
# submit.sh SITE ARGUMENT...: sbatch ARGUMENT..., with what the site's file exports, such as SBATCH_PARTITION.
# shellcheck source=/dev/null
source "$1" || exit 1
exec sbatch "${@:2}"
