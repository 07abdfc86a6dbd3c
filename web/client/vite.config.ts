import { gzipSync } from "node:zlib";
import type { Plugin } from "vite";
import { defineConfig } from "vitest/config";

// During development the page is served by Vite and everything that belongs to
// the server is handed on to a running Trunkhall (TRUNKHALL_URL, default the
// address that `trunkhall demo` uses).
const server = process.env.TRUNKHALL_URL ?? "http://127.0.0.1:8008";
const toServer = { target: server, changeOrigin: false, ws: true };

// The server sends a file's .gz neighbour to browsers that take it. Worth it
// for code and above all for the WebAssembly part.
const compressed: Plugin = {
  name: "compressed",
  apply: "build",
  generateBundle: {
    order: "post",
    handler(_options, bundle) {
      for (const file of Object.values(bundle)) {
        if (!/\.(js|css|wasm|svg)$/.test(file.fileName)) continue;
        const source = file.type === "chunk" ? file.code : file.source;
        if (source.length < 2048) continue;
        this.emitFile({ type: "asset", fileName: `${file.fileName}.gz`, source: gzipSync(source, { level: 9 }) });
      }
    },
  },
};

export default defineConfig({
  plugins: [compressed],
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    outDir: "../dist",
    emptyOutDir: true,
    target: "es2022",
    // The Matrix library and its WebAssembly part are large by nature.
    chunkSizeWarningLimit: 4000,
  },
  worker: { format: "es" },
  optimizeDeps: { exclude: ["@matrix-org/matrix-sdk-crypto-wasm"] },
  server: {
    proxy: {
      "/_matrix": toServer,
      "/_trunkhall": toServer,
      "/.well-known": toServer,
      "/config.json": toServer,
      "/rtc": toServer,
      "/sfu": toServer,
      "/get_token": toServer,
      "/delegate_delayed_leave": toServer,
    },
  },
  test: { include: ["src/**/*.test.ts"], environment: "node" },
});
