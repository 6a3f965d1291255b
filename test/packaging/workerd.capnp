using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (services = [(name = "main", worker = .worker)]);

const worker :Workerd.Worker = (
  modules = [
    (name = "worker", esModule = embed "bundles/workerd.js"),
    (name = "kvarn/kvarn.wasm", wasm = embed "node_modules/kvarn/dist/kvarn.wasm"),
    (name = "fixture.safetensors", data = embed "bundles/fixture.safetensors"),
  ],
  compatibilityDate = "2025-01-01",
);
