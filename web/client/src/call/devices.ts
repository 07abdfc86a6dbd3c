import { VideoPresets, type VideoPreset } from "livekit-client";
import { Store } from "../lib/store.ts";

export interface DeviceLists {
  audioinput: MediaDeviceInfo[];
  videoinput: MediaDeviceInfo[];
  audiooutput: MediaDeviceInfo[];
}

/** What the person wants to use in calls; kept between visits. */
export interface Preferences {
  audioinput?: string;
  videoinput?: string;
  audiooutput?: string;
  mic: boolean;
  camera: boolean;
}

const KEY = "trunkhall.devices";

export const devices = new Store<DeviceLists>({ audioinput: [], videoinput: [], audiooutput: [] });
export const preferences = new Store<Preferences>(load());

function load(): Preferences {
  try {
    const p = JSON.parse(localStorage.getItem(KEY) ?? "{}") as Partial<Preferences>;
    return { ...p, mic: p.mic ?? true, camera: p.camera ?? true };
  } catch {
    return { mic: true, camera: true };
  }
}

export function prefer(part: Partial<Preferences>): void {
  preferences.patch(part);
  try {
    localStorage.setItem(KEY, JSON.stringify(preferences.value));
  } catch {
    // Not kept; still used for this visit.
  }
}

/** refreshDevices reads the list anew: labels appear once a permission was given. */
export async function refreshDevices(): Promise<void> {
  if (!navigator.mediaDevices?.enumerateDevices) return;
  const all = await navigator.mediaDevices.enumerateDevices().catch(() => []);
  const of = (kind: MediaDeviceKind) => all.filter((d) => d.kind === kind && d.deviceId !== "");
  devices.set({ audioinput: of("audioinput"), videoinput: of("videoinput"), audiooutput: of("audiooutput") });
}

/** watchDevices keeps the list in step with what is plugged in. */
export function watchDevices(): void {
  navigator.mediaDevices?.addEventListener?.("devicechange", () => void refreshDevices());
}

/** wanted is the preferred device of a kind if it is still there. */
export function wanted(kind: keyof DeviceLists): string | undefined {
  const id = preferences.value[kind];
  const list = devices.value[kind];
  if (id === undefined || (list.length > 0 && !list.some((d) => d.deviceId === id))) return undefined;
  return id;
}

/** Why a microphone, camera or screen cannot be had. */
export type DeviceProblem = "denied" | "missing" | "busy" | "insecure" | "other";

/** deviceProblem reads the names that getUserMedia gives its errors. */
export function deviceProblem(e: unknown): DeviceProblem {
  const name = (e as { name?: string } | undefined)?.name ?? "";
  if (typeof isSecureContext !== "undefined" && !isSecureContext) return "insecure";
  if (name === "NotAllowedError" || name === "SecurityError" || name === "PermissionDeniedError") return "denied";
  if (name === "NotFoundError" || name === "OverconstrainedError" || name === "DevicesNotFoundError") return "missing";
  if (name === "NotReadableError" || name === "AbortError" || name === "TrackStartError") return "busy";
  return "other";
}

/**
 * cameraPreset is the picture that a machine with so many processor cores can
 * encode in several sizes at once, beside decoding everybody else's.
 */
export function cameraPreset(cores = navigator.hardwareConcurrency || 4): VideoPreset {
  if (cores <= 2) return VideoPresets.h360;
  return cores <= 4 ? VideoPresets.h540 : VideoPresets.h720;
}
