#!/usr/bin/env bash
# Fails if proto/ breaks clients of the last release: runs `buf breaking` on the current descriptors
# against those of the last git tag, without a network.
#
#   proto/check-breaking.sh [TAG]     TAG: the tag or commit to compare with; default: the last tag.
#
# buf.yaml defines which changes are breaking. Without a tag there is nothing to compare with: the
# script says so and succeeds.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-$PWD/../.venv/bin/python}
bin=$(cd "$(dirname "$python")" && pwd)

if ! git rev-parse --git-dir >/dev/null 2>&1; then
  echo "proto/: not compared: this is not a git repository"
  exit 0
fi
tag=${1:-$(git describe --tags --abbrev=0 2>/dev/null || true)}
if [ -z "$tag" ]; then
  if [ "$(git rev-parse --is-shallow-repository)" = true ]; then
    echo "proto/: not compared: a shallow clone without tags (git fetch --unshallow --tags)"
  else
    echo "proto/: not compared: there is no tag yet"
  fi
  exit 0
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
here=$(git rev-parse --show-prefix)
git -C "$(git rev-parse --show-toplevel)" archive --prefix=old/ "$tag:${here%/}" |
  tar -x -C "$scratch"

# Compiles all protos of both versions with the same compiler.
google=$("$python" -c 'import google.rpc, pathlib; print(pathlib.Path(google.rpc.__path__[0]).parents[1])')
image() ( # image FOLDER FILE
  cd "$1"
  find . -name '*.proto' -printf '%P\0' | sort -z | xargs -0 "$python" -m grpc_tools.protoc -I . \
    -I "$google" --include_imports --include_source_info --descriptor_set_out="$2"
)
image . "$scratch/new.binpb"
image "$scratch/old" "$scratch/old.binpb"

# Imported protos are not ours to check.
if ! PATH="$bin:$PATH" buf breaking "$scratch/new.binpb" --against "$scratch/old.binpb" \
  --config buf.yaml --exclude-imports; then
  echo "proto/: breaks clients of $tag" >&2
  exit 1
fi
echo "proto/: breaks no client of $tag"
