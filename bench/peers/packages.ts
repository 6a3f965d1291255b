/** The packages that `npm run peers` installs. */
import { importFile, readText } from "../files.js";
import { AbsentError, reasonOf } from "./peer.js";

const FOLDER = "build/peers/node_modules";

/** A package's name with its version, or without one where it is not installed. */
export async function packageName(name: string): Promise<string> {
  try {
    const { version } = JSON.parse(await readText(`${FOLDER}/${name}/package.json`)) as { version: string };
    return `${name} ${version}`;
  } catch {
    return name;
  }
}

/** Imports a module of a package. @throws {AbsentError} where that fails */
export async function importPackage<T>(name: string, file: string): Promise<T> {
  try {
    await readText(`${FOLDER}/${name}/package.json`);
  } catch {
    throw new AbsentError("not installed; `npm run peers` does that");
  }
  try {
    return await importFile<T>(`${FOLDER}/${name}/${file}`);
  } catch (error) {
    throw new AbsentError(`it does not load: ${reasonOf(error)}`);
  }
}
