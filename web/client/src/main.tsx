import { render } from "preact";
import { boot } from "./app.ts";
import { refreshDevices, watchDevices } from "./call/devices.ts";
import { listenToHistory } from "./lib/router.ts";
import { App } from "./ui/app.tsx";
import "./style.css";

listenToHistory();
watchDevices();
void refreshDevices();
render(<App />, document.getElementById("app")!);
void boot();
