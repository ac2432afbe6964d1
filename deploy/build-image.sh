#!/bin/sh
# Builds the image of deploy/Dockerfile, pushes it, keeps the list of its contents, and signs both:
#
#   deploy/build-image.sh IMAGE:TAG [smollm2|none]
#
# The base image must be named with its digest; BASE_IMAGE overrides the one in the Dockerfile. Results
# are in build/image: metadata.json (BuildKit's), digest, ruvd.cdx.json (CycloneDX, the virtual
# environment of the pushed image). BuildKit attaches its own SBOM, with the Debian packages, and the
# provenance.
#
# Where cosign exists, the digest is signed, never the tag, and the CycloneDX list is attached as an
# attestation: with the key in COSIGN_KEY, otherwise keyless by the caller's identity. Without cosign
# the image stays unsigned, which is said; with REQUIRE_SIGNATURE=1 nothing is built then.
set -eu

fail() {
  echo "build-image.sh: $*" >&2
  exit 1
}

[ $# -ge 1 ] && [ $# -le 2 ] || { sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
image=$1 model=${2:-smollm2}
cd "$(dirname "$0")/.."
case ${image##*/} in
  *@*) fail "name a tag to push, not a digest: $image" ;;
  *:*) ;;
  *) fail "name a tag to push: $image:VERSION" ;;
esac
base=${BASE_IMAGE:-$(sed -n 's/^ARG BASE_IMAGE=//p' deploy/Dockerfile | head -n 1)}
case $base in
  *@sha256:*) ;;
  *) fail "the base image needs a digest: BASE_IMAGE=$base@sha256:..." ;;
esac
if ! command -v cosign >/dev/null && [ "${REQUIRE_SIGNATURE:-}" = 1 ]; then
  fail "REQUIRE_SIGNATURE is set, and cosign is not installed"
fi
revision=$(git rev-parse HEAD)
[ -z "$(git status --porcelain)" ] || revision=$revision-dirty
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml | head -n 1)

# A newer base image has Debian's security updates, so an outdated pin is worth a line.
newest=$(docker buildx imagetools inspect "${base%@*}" --format '{{.Manifest.Digest}}' 2>/dev/null) || newest=
if [ -n "$newest" ] && [ "$newest" != "${base#*@}" ]; then
  echo "build-image.sh: ${base%@*} is $newest now: update BASE_IMAGE in deploy/Dockerfile" >&2
fi

results=build/image
rm -rf "$results"
mkdir -p "$results"
docker buildx build --file deploy/Dockerfile --tag "$image" --push \
  --build-arg "BASE_IMAGE=$base" --build-arg "MODEL=$model" \
  --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
  --sbom=true --provenance=mode=max --metadata-file "$results/metadata.json" .
digest=$(sed -n 's/.*"containerimage.digest": *"\(sha256:[0-9a-f]*\)".*/\1/p' "$results/metadata.json")
[ -n "$digest" ] || fail "docker buildx reported no digest in $results/metadata.json"
pushed=${image%:*}@$digest
echo "$pushed" >"$results/digest"

container=$(docker create "$pushed")
trap 'docker rm "$container" >/dev/null' EXIT
docker cp "$container:/opt/ruvd/share/ruvd.cdx.json" "$results/ruvd.cdx.json"

if command -v cosign >/dev/null; then
  set -- --yes
  [ -z "${COSIGN_KEY:-}" ] || set -- "$@" --key "$COSIGN_KEY"
  cosign sign "$@" "$pushed"
  cosign attest "$@" --type cyclonedx --predicate "$results/ruvd.cdx.json" "$pushed"
  echo "signed: $pushed"
else
  echo "NOT SIGNED, as cosign is not installed: $pushed"
fi
