import { defineConfig } from "vitest/config";

// During development the page is served by Vite and everything that belongs to
// the server is handed on to a running Trunkhall (TRUNKHALL_URL, default the
// address that `trunkhall demo` uses).
declare const process: { env: Record<string, string | undefined> };
const server = process.env.TRUNKHALL_URL ?? "http://127.0.0.1:8008";
const toServer = { target: server, changeOrigin: false, ws: true };

export default defineConfig({
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
