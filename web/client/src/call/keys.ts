import { BaseKeyProvider } from "livekit-client";
import { MatrixRTCSessionEvent, type MatrixRTCSession } from "matrix-js-sdk/lib/matrixrtc";

/**
 * Hands the media keys that a MatrixRTC session exchanges (one for each
 * participant, by encrypted to-device messages) to the workers that encrypt
 * and decrypt frames. Keys are 16 bytes of key material for HKDF; ratchet
 * window and key ring size are those of other Matrix calling clients.
 */
export class MatrixKeys extends BaseKeyProvider {
  constructor(private session: MatrixRTCSession) {
    super({ ratchetWindowSize: 10, keyringSize: 256 });
    session.on(MatrixRTCSessionEvent.EncryptionKeyChanged, this.onKey);
    session.reemitEncryptionKeys();
  }

  close(): void {
    this.session.off(MatrixRTCSessionEvent.EncryptionKeyChanged, this.onKey);
  }

  private onKey = (key: Uint8Array<ArrayBuffer>, index: number, _who: unknown, identity: string): void => {
    crypto.subtle.importKey("raw", key, "HKDF", false, ["deriveBits", "deriveKey"]).then(
      (material) => this.onSetEncryptionKey(material, identity, index),
      (e: unknown) => console.error("media key could not be imported", e),
    );
  };
}
