#!/bin/sh
# Browser tests want Chromium. Where none is installed and this is Debian with root, its own is installed; otherwise the
# tests say what they skip.
for name in chromium chromium-browser google-chrome; do command -v $name >/dev/null 2>&1 && exit 0; done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing Debian's Chromium for the browser tests."
    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium) >/dev/null 2>&1 && exit 0
fi
echo "No Chromium here: the browser tests will be skipped. Install the package 'chromium' to run them." >&2
