export function openTerminateDialog() {}
export function terminationState() { return null; }
