#!/usr/bin/env bash
# Build the documentation as a site: `make docs`. It is in .site/html, opens from a folder and asks nobody for fonts
# or scripts. A broken link, a page that no menu has, whatever mkdocs warns of ends it.
#
# mkdocs is that of .venv (the extra `docs`) or else of an environment of its own, made the first time. With --which
# nothing is made or built: is it there?
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly SOURCE=.site/source VENV=.site/venv

if .venv/bin/python -c 'import material, mkdocs, pymdownx' 2>/dev/null; then
    mkdocs=.venv/bin/mkdocs
elif [[ $VENV/stamp -nt requirements/docs.txt ]]; then
    mkdocs=$VENV/bin/mkdocs
elif [[ ${1:-} == --which ]]; then
    exit 1
else
    .venv/bin/python -m venv --clear "$VENV"
    "$VENV/bin/pip" install --quiet --disable-pip-version-check --requirement requirements/docs.txt
    touch "$VENV/stamp"
    mkdocs=$VENV/bin/mkdocs
fi
[[ ${1:-} != --which ]] || exit 0
rm -rf "$SOURCE" .site/html
# Pages stay where they are to each other, so that links between them hold here as in the repository.
mkdir -p "$SOURCE/experiments/questions/data"
cp -r docs examples ./*.md "$SOURCE"
cp experiments/LOG.md "$SOURCE/experiments"
.venv/bin/graft reference "$SOURCE/reference"
NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true "$mkdocs" build --strict --quiet --config-file mkdocs.yml
echo "the site is .site/html/index.html"
