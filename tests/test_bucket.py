# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The bucket of the tests keeps the conditions that tensorstore relies on."""

import urllib.error
import urllib.request

from tests import bucket


def ask(url, method="GET", data=None):
    request = urllib.request.Request(url, method=method, data=data)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, b""


def test_conditions_hold():
    with bucket.serve() as served:
        place = f"{served.url}/storage/v1/b/{bucket.NAME}/o"
        name = "uploadType=media&name=a%2Fb&ifGenerationMatch=0"
        write = f"{served.url}/upload/storage/v1/b/{bucket.NAME}/o?{name}"
        assert ask(write, "POST", b"first")[0] == 200
        assert ask(write, "POST", b"second")[0] == 412
        generation, content = served.objects["a/b"]
        assert content == b"first"
        assert ask(f"{place}/a%2Fb?alt=media") == (200, b"first")
        assert ask(f"{place}/a%2Fb?alt=media&ifGenerationNotMatch={generation}")[0] == 304
        assert ask(f"{place}/a%2Fc?alt=media")[0] == 404
        assert b'"prefixes": ["a/"]' in ask(f"{place}?delimiter=/")[1]
        assert ask(f"{place}/a%2Fb", "DELETE")[0] == 204
        assert not served.objects
