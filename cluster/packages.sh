#!/usr/bin/env bash
# Installs what airmoe needs to build, test and run on Debian 12 and Ubuntu 24.04. Installs only what
# is missing; needs root or sudo only then.
set -euo pipefail

packages=(
  build-essential cmake ninja-build       # compiler, build
  libopenmpi-dev openmpi-bin              # MPI
  libucx-dev                              # the other transport
  libopenblas-dev libhwy-dev              # matrix products, SIMD
  libhdf5-dev hdf5-tools libisal-dev      # checkpoints and traces, their checksums
  libmetis-dev                            # placement of codewords and experts
  librandom123-dev                        # counter-based random numbers
  libfmt-dev nlohmann-json3-dev           # messages, metrics
  libboost-program-options-dev            # command line
  libgtest-dev                            # tests
  python3-h5py python3-numpy python3-matplotlib  # plots, and tests that read files back
)
optional=(clang-format-14)  # lint.format is skipped without it

installed() {
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  echo "packages: this is not Debian or Ubuntu; install by hand what corresponds to: ${packages[*]}" >&2
  exit 1
fi

missing=()
for package in "${packages[@]}"; do
  installed "$package" || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "packages: all ${#packages[@]} are installed"
  exit 0
fi

if [ "$(id -u)" -eq 0 ]; then
  as_root=(env DEBIAN_FRONTEND=noninteractive)
elif command -v sudo >/dev/null; then
  as_root=(sudo env DEBIAN_FRONTEND=noninteractive)
else
  echo "packages: missing: ${missing[*]}" >&2
  echo "packages: neither root nor sudo here; ask an administrator to run: apt-get install ${missing[*]}" >&2
  exit 1
fi

echo "packages: installing ${missing[*]}"
"${as_root[@]}" apt-get update -q
for package in "${optional[@]}"; do
  if ! installed "$package" && apt-cache show "$package" >/dev/null 2>&1; then
    missing+=("$package")
  fi
done
"${as_root[@]}" apt-get install -q -y --no-install-recommends "${missing[@]}"
echo "packages: done"
