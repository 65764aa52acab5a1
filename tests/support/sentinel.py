"""Valkey's own sentinel."""

from __future__ import annotations

from guardrails.testing.servers import ValkeyServer


class SentinelServer(ValkeyServer):
    """The same program as a sentinel, which keeps its own configuration file."""

    _kind = "Valkey Sentinel"

    def _command(self):
        program, config = super()._command()[0], self.home / "sentinel.conf"
        config.write_text(
            "\n".join([f"port {self.port}", "bind 127.0.0.1", f"dir {self.home}", *self._options])
        )
        return [program, str(config), "--sentinel"]

    def _is_ready(self):
        return b"+monitor master" in self._log.read_bytes()
