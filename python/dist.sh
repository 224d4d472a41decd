#!/bin/sh
cd "$MESON_DIST_ROOT" && rm -rf tests bench examples .ci
